"""Cold start: supervised fine-tuning of the base on a few thousand readable traces (DeepSeek-R1, section 2.3.1).

accelerate launch -m recipes.cold_start_sft --config recipes/configs/tiny_v3/pipeline/cold_start_sft.yaml
"""

import sys

from recipes.tuning.sft import R1_SCHEDULE, Stage

STAGE = Stage(name="cold_start_sft", defaults={**R1_SCHEDULE, "learning_rate": 5e-5})
parse, main = STAGE.parse, STAGE.main

if __name__ == "__main__":
    sys.exit(main())
