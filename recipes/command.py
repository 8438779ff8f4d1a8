"""What every recipe's command line has in common."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from grpo.config.parse import ParsedRun
from grpo.dry_run import dry_run
from grpo.errors import ToolkitError
from grpo.loop import run
from grpo.monitor.metrics import read_metrics
from grpo.monitor.report import report_from_run
from recipes.lineage import write_run_lineage

WAIT_FOR_MAIN = 3.0  # seconds in which the launcher ends this process if the main one has failed too


def exit_code(work: Callable[[], int]) -> int:
    """What `work` returns; errors made on purpose are printed without a traceback and give 2.

    Of several processes that fail alike, only the main one speaks. A launcher prints more after it, which no process
    can help: `accelerate launch --quiet` keeps it short for one process.
    """
    try:
        return work()
    except ToolkitError as error:
        if not is_main():
            time.sleep(WAIT_FOR_MAIN)
        text = f"{type(error).__name__}: {error}"
        print(text, file=sys.stderr, flush=True)
        tell_launcher(text)
        return 2


def dry_run_or_train(parsed: ParsedRun, stage: str) -> int:
    """`stage`: the recipe, for the lineage of what it makes."""
    if parsed.config.output.dry_run:
        dry_run(parsed.config, parsed.report)
        return 0
    began = time.monotonic()
    code = run(parsed.config, notes=parsed.notes)
    if is_main() and code == 0:
        write_run_lineage(parsed.config, stage=stage, seconds=time.monotonic() - began)
    if is_main():
        write_report(Path(parsed.config.output.output_dir))
    return code


def set_aside(folder: Path) -> Path:
    """Keep a folder as `<folder>.1`, `<folder>.2`, ..., and make room for a new one."""
    names = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
    kept = next(path for path in names if not path.exists())
    folder.rename(kept)
    return kept


def print_table(table: list[list[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    rendered = Table(*map(str, table[0]))
    for name, *values in table[1:]:
        rendered.add_row(name, *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values))
    Console().print(rendered)


def write_report(run_dir: Path) -> None:
    """At the end of a run, and after a stop; a report that fails is no reason for a run to fail."""
    if not read_metrics(run_dir):
        return
    try:
        shown = f"   completions: grpo show {run_dir}" if (run_dir / "completions").exists() else ""
        print(f"report: {report_from_run(run_dir)}{shown}", flush=True)
    except Exception as error:
        print(f"WARNING: no report was written ({type(error).__name__}: {error}); try `grpo report {run_dir}`")


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def tell_launcher(text: str) -> None:
    """torch's launcher ends with a table of what failed, and shows there what it finds in this file."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(path).write_text(json.dumps({"message": text, "timestamp": int(time.time())}), encoding="utf-8")
