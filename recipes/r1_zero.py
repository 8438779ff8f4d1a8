"""R1-Zero: GRPO straight on a base model, with rule-based rewards (DeepSeek-R1, section 2.1).

accelerate launch -m recipes.r1_zero --config recipes/configs/tiny_v3/r1_zero.yaml --learning_rate 1e-4
"""

from __future__ import annotations

import sys

from grpo.config.parse import parse_run_config
from grpo.dry_run import dry_run
from grpo.errors import ToolkitError
from grpo.loop import run


def main(argv: list[str] | None = None) -> int:
    """Parse, then dry-run or train. Errors made on purpose are printed without a traceback; exit code 2."""
    try:
        parsed = parse_run_config(sys.argv[1:] if argv is None else argv)
        if parsed.config.output.dry_run:
            dry_run(parsed.config, parsed.report)
            return 0
        return run(parsed.config, notes=parsed.notes)
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
