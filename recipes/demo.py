"""The first learning curve: R1-Zero on the tiny base, before/after table, samples, summary and report.

    make demo        or        python -m recipes.demo --seed 1

Any key of recipes/configs/tiny_v3/r1_zero.yaml is a flag here too.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from grpo.checkpoint.runlock import RunLock
from grpo.config import RunConfig
from grpo.config.parse import ParsedRun, parse_run_config
from grpo.errors import ConfigError
from grpo.files import write_json_atomic
from grpo.loop import run
from grpo.monitor.metrics import read_metrics
from grpo.monitor.report import before_after_table, evaluation_samples, report_from_run
from grpo.monitor.text import visible
from grpo.setup import versions
from recipes.command import dry_run_or_train, exit_code, is_main, print_table, set_aside, write_report
from recipes.lineage import write_run_lineage

CONFIG = Path(__file__).parent / "configs" / "tiny_v3" / "r1_zero.yaml"
DEFAULTS = ["--config", str(CONFIG), "--model_name_or_path", str(CONFIG.parent / "base"), "--output_dir", "runs/demo"]


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: demonstrate(parse_run_config([*DEFAULTS, *given])))


def demonstrate(parsed: ParsedRun) -> int:
    cfg, began = parsed.config, time.perf_counter()
    if cfg.output.dry_run:
        return dry_run_or_train(parsed, "demo")
    if not (cfg.eval.eval_on_start and cfg.eval.eval_on_end):
        raise ConfigError("the demo compares before and after: leave eval_on_start and eval_on_end at true")
    run_dir = Path(cfg.output.output_dir)
    if is_main() and cfg.output.resume == "never":
        keep_older(run_dir)
    code = run(cfg, notes=parsed.notes)
    if is_main():
        finish(cfg, run_dir, time.perf_counter() - began) if code == 0 else write_report(run_dir)
    return code


def keep_older(run_dir: Path) -> None:
    """A demo starts afresh unless it is told to resume; a run before it is kept as `<run>.1`, `<run>.2`, ...

    Raises ConfigError where that run still goes on, or where the folder holds something else than a run.
    """
    held = {path.name for path in run_dir.iterdir()} - {".lock"} if run_dir.exists() else set()
    if not held:
        return
    if "config.yaml" not in held:
        raise ConfigError(f"{run_dir} holds files but no run: give another output_dir")
    with RunLock(run_dir):
        kept = set_aside(run_dir)
    print(f"the run before this one is now {kept}")


def finish(cfg: RunConfig, run_dir: Path, seconds: float) -> None:
    """Write summary.json and report.html; print the table, the samples and where everything is."""
    write_run_lineage(cfg, stage="demo", seconds=seconds)
    summary = summarise(cfg, run_dir, seconds)
    write_json_atomic(run_dir / "summary.json", summary)
    report = report_from_run(run_dir)
    print_table(before_after_table(summary))
    for when, samples in summary["samples"].items():
        print(f"\n{when}: {samples[0]['question']}   (gold {samples[0]['answer']})")
        for sample in samples:
            print(f"  {'right' if sample['correct'] else 'wrong'}  {visible(sample['completion'])}")
    print(f"\n{seconds:.0f} s. Report: {report}   Completions: grpo show {run_dir}")


def summarise(cfg: RunConfig, run_dir: Path, seconds: float) -> dict[str, Any]:
    """Held-out figures before and after, samples, where the seconds went, and what the run was made with."""
    lines = read_metrics(run_dir)
    evaluations = [line for line in lines if "eval/pass@1" in line]
    phases: dict[str, float] = defaultdict(float, total=seconds)
    for line in lines:
        for name, value in line.items():
            if name.startswith("seconds/"):
                phases[name.removeprefix("seconds/")] += value or 0.0
    before, after = held_out(evaluations[0]), held_out(evaluations[-1])
    temperature = f"temperature {cfg.eval.eval_temperature:g}"
    return {
        "before": before,
        "after": after,
        "samples": evaluation_samples(run_dir),
        "notes": [f"{after['problems']} held-out problems x {after['samples']} samples, {temperature}"],
        "seconds": {name: round(value, 1) for name, value in phases.items()},
        "updates": lines[-1]["step"],
        "seed": cfg.output.seed,
        "versions": versions(),
    }


def held_out(line: dict[str, Any]) -> dict[str, float]:
    figures = {name.removeprefix("eval/"): value for name, value in line.items() if name.startswith("eval/")}
    return {name: value if isinstance(value, int) else round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    sys.exit(main())
