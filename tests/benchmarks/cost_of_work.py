"""What a completion token costs as groups, prompts and completions grow: one step of this project at a time.

    python -m tests.benchmarks.cost_of_work [--model v3|qwen3] [--rows 64] [--device cuda] [--threads N]
        [--json FILE] [--quick]

Every step has the same number of rows, so that larger groups mean fewer prompts and no more completion tokens: tokens
per second should not fall. One size changes at a time; --quick: three small points. Phases and lengths as in
`grpo_step`; the tokens of two steps over the seconds of both, after a first one. `CPU`: tokens per CPU second of a
step, all threads together, which says more on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from tests.benchmarks.measure import PHASES
from tests.benchmarks.ours import Ours
from tests.benchmarks.workload import Workload, save_model

GROUPS, PROMPTS, COMPLETIONS = (4, 8, 16, 32, 64), (64, 256, 512, 1024, 2048), (64, 256, 512, 1024)
BASE = (16, 256, 64)
STEPS = 2
Point = tuple[int, int, int]  # rows of a group, tokens of a prompt, most tokens of a completion


def points(*, quick: bool) -> list[Point]:
    if quick:
        return [(2, 8, 8), (4, 8, 8), (4, 16, 8)]
    size, prompt, completion = BASE
    along = [(g, prompt, completion) for g in GROUPS]
    along += [(size, p, completion) for p in PROMPTS if p != prompt]
    return along + [(size, prompt, c) for c in COMPLETIONS if c != completion]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["v3", "qwen3"], default="v3")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        f"{args.model}, {args.device}, {args.rows} rows a step, tokens per second of sampling, of the update, of both"
    )
    print("| group | prompt | completion | tokens | sampling | update | step | CPU | peak MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as name:
        model = save_model(args.model, "quick" if args.quick else args.device, Path(name) / "model")
        for number, point in enumerate(points(quick=args.quick)):
            folder = Path(name) / str(number)
            folder.mkdir()
            found.append(cost(model, point, args.rows if not args.quick else 8, folder))
            print(line(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def cost(model: Path, point: Point, rows: int, folder: Path) -> dict[str, float]:
    size, prompt, completion = point
    workload = Workload.draw(groups=rows // size, size=size, prompt=prompt, completion=completion)
    ours = Ours.build(model, workload, folder, "--reward_isolation", "none")  # its start is no part of this
    steps = [ours.step() for _ in range(1 + STEPS)][1:]
    seconds = {phase: sum(step.seconds[phase] for step in steps) for phase in PHASES}
    tokens = sum(step.tokens for step in steps)
    return {
        "group": size,
        "prompt": prompt,
        "completion": completion,
        "tokens": steps[0].tokens,
        **{phase: tokens / seconds[phase] for phase in ("sampling", "update", "step")},
        "cpu": tokens / sum(step.cpu for step in steps),
        "peak_mb": max(step.peak_mb for step in steps),
    }


def line(of: dict[str, float]) -> str:
    return "| " + " | ".join(f"{value:.0f}" for value in of.values()) + " |"


if __name__ == "__main__":
    main()
