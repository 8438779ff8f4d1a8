"""R1-Zero: GRPO straight on a base model, with rule-based rewards (DeepSeek-R1, section 2.1).

accelerate launch -m recipes.r1_zero --config recipes/configs/tiny_v3/r1_zero.yaml --learning_rate 1e-4
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from grpo.config import RunConfig
from grpo.config.parse import parse_run_config
from recipes.command import dry_run_or_train, exit_code


def parse(argv: Sequence[str]) -> RunConfig:
    return parse_run_config(argv).config


def main(argv: list[str] | None = None, stage: str = "r1_zero") -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: dry_run_or_train(parse_run_config(given), stage))


if __name__ == "__main__":
    sys.exit(main())
