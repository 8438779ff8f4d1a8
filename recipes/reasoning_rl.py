"""Reasoning-oriented RL: GRPO from the cold start, for accuracy, format and one language in the thinking, their rewards
added directly (DeepSeek-R1, section 3.2.1 and eq. 7). The run is r1_zero's; what differs is in the YAML.

accelerate launch -m recipes.reasoning_rl --config recipes/configs/tiny_v3/pipeline/reasoning_rl.yaml
"""

import sys
from functools import partial

from recipes import r1_zero

parse, main = r1_zero.parse, partial(r1_zero.main, stage="reasoning_rl")

if __name__ == "__main__":
    sys.exit(main())
