"""What drawing one token costs a batch of rows, next to transformers' processors and `torch.multinomial`.

    python -m tests.benchmarks.drawing [--rows 32] [--device cuda] [--threads N] [--json FILE] [--quick]

Both get the same logits, whose probabilities fall with the 1.5th power of a token's rank, and give a token of each row
and its log-probability. In turn, the fastest of five; --quick: one small vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo.config import SamplingConfig
from grpo.sampling.draw import Draw
from tests.benchmarks.measure import timed

VOCABULARIES = (512, 32_000, 151_936)
WARPERS = {
    "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
}  # fmt: skip
RULES: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.7}, {"top_k": 50}, {"top_p": 0.95}, {"min_p": 0.05})
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{args.rows} rows, {args.device}: milliseconds of a draw")
    print("| vocabulary | rules | here | transformers | ratio |\n|---|---|---|---|---|")
    found = []
    for vocabulary in VOCABULARIES[:1] if args.quick else VOCABULARIES:
        logits_BV = logits_of(args.rows, vocabulary).to(args.device)
        for rules in RULES:
            found.append({"vocabulary": vocabulary, "rules": rules, **compared(logits_BV, rules)})
            print(line(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def line(point: dict[str, Any]) -> str:
    ours, theirs = (f"{1e3 * point[name]:.2f}" for name in ("ours", "transformers"))
    return f"| {point['vocabulary']:,} | {point['rules'] or 'none'} | {ours} | {theirs} | {point['ratio']:.1f} |"


def logits_of(rows: int, vocabulary: int) -> Tensor:
    torch.manual_seed(0)
    ranks = torch.stack([torch.randperm(vocabulary) for _ in range(rows)]) + 1
    return -1.5 * ranks.float().log()


def compared(logits_BV: Tensor, rules: dict[str, Any]) -> dict[str, float]:
    draw = Draw(SamplingConfig(**rules))
    uniforms_B = torch.rand(len(logits_BV), dtype=torch.float64).to(logits_BV.device)
    processors = LogitsProcessorList([WARPERS[name](value) for name, value in rules.items()])

    def theirs() -> tuple[Tensor, Tensor]:
        scores_BV = processors(None, logits_BV)
        token_B1 = torch.multinomial(scores_BV.softmax(-1), num_samples=1)
        return token_B1, scores_BV.log_softmax(-1).gather(1, token_B1)

    sides = {"ours": lambda: draw(logits_BV, uniforms_B), "transformers": theirs}
    best = dict.fromkeys(sides, math.inf)
    for repeat in range(1 + REPEATS):
        for name, once in sides.items():
            seconds = timed(once, logits_BV.device)
            best[name] = min(best[name], seconds) if repeat else math.inf
    return {**best, "ratio": best["transformers"] / best["ours"]}


if __name__ == "__main__":
    main()
