"""RL for all scenarios: one run over reasoning and general prompts, each judged by the rewards of its task; general
prompts and the preference rewards come in its last updates alone (DeepSeek-R1, section 3.2.2, eq. 8 to 10). The run is
r1_zero's; what differs is in the YAML: `dataset_mixture`, `tasks` of the rewards, and `schedule`.

accelerate launch -m recipes.all_scenarios_rl --config recipes/configs/tiny_v3/pipeline/all_scenarios_rl.yaml
"""

import sys
from functools import partial

from recipes import r1_zero

parse, main = r1_zero.parse, partial(r1_zero.main, stage="all_scenarios_rl")

if __name__ == "__main__":
    sys.exit(main())
