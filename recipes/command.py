"""What every recipe's command line has in common."""

from __future__ import annotations

import sys
from collections.abc import Callable

from grpo.config.parse import ParsedRun
from grpo.dry_run import dry_run
from grpo.errors import ToolkitError
from grpo.loop import run


def exit_code(work: Callable[[], int]) -> int:
    """What `work` returns; errors made on purpose are printed without a traceback and give 2."""
    try:
        return work()
    except ToolkitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def dry_run_or_train(parsed: ParsedRun) -> int:
    if parsed.config.output.dry_run:
        dry_run(parsed.config, parsed.report)
        return 0
    return run(parsed.config, notes=parsed.notes)
