"""Distillation: a small dense student tuned on verified traces of a large teacher (DeepSeek-R1, section 2.4).

accelerate launch -m recipes.distill --config recipes/configs/tiny_v3/pipeline/distill.yaml
"""

import sys

from recipes.tuning.sft import R1_SCHEDULE, Stage

STAGE = Stage(name="distill", defaults={**R1_SCHEDULE, "learning_rate": 1e-4})
parse, main = STAGE.parse, STAGE.main

if __name__ == "__main__":
    sys.exit(main())
