"""Second SFT: the base again, on rejection-sampled reasoning and non-reasoning rows (DeepSeek-R1, section 2.3.3).

accelerate launch -m recipes.second_sft --config recipes/configs/tiny_v3/pipeline/second_sft.yaml
"""

import sys

from recipes.tuning.sft import R1_SCHEDULE, Stage

STAGE = Stage(name="second_sft", defaults={**R1_SCHEDULE, "learning_rate": 5e-5}, from_base=True)
parse, main = STAGE.parse, STAGE.main

if __name__ == "__main__":
    sys.exit(main())
