"""What a batch of packed rows costs in supervised fine-tuning, next to transformers' sdpa with a mask over the pack.

    python -m tests.benchmarks.packed_rows [--device cuda] [--json FILE] [--quick]

Forward and backward of 2,048 tokens, as trl's collator puts them side by side: rows of one length, then one of 1,024
with rows of 32. The losses are compared, then the two attentions take turns; medians and spreads of five.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from grpo.policy.tiny_v3 import build_tokenizer
from recipes.tuning.packed_attention import NAME, PackedAttention
from tests.benchmarks.measure import spread
from tests.benchmarks.workload import build_model

ROWS = {"32": [32] * 64, "128": [128] * 16, "512": [512] * 4, "1,024 and 32": [1024] + [32] * 32}
REPEATS = 5


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    AttentionInterface.register(NAME, PackedAttention())
    print("| model | tokens of the rows | ms: sdpa with a mask | ms: here | ratio |\n|---|---|---|---|---|")
    found = []
    for kind in ("v3",) if args.quick else ("v3", "qwen3"):
        model = build_model(kind, "quick" if args.quick else args.device, build_tokenizer()).to(args.device)
        for name, lengths in list(ROWS.items())[:: 3 if args.quick else 1]:
            found.append({"model": kind, "rows": name, **compared(model, batch_of(model, lengths))})
            print(line(found[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def line(point: dict[str, Any]) -> str:
    masked, ours = (f"{1e3 * point[name][1]:.0f}" for name in ("masked", "ours"))
    low, middle, high = point["ratio"]
    return f"| {point['model']} | {point['rows']} | {masked} | {ours} | {middle:.1f} ({low:.1f} to {high:.1f}) |"


def batch_of(model: nn.Module, lengths: Sequence[int]) -> dict[str, Tensor]:
    ids = torch.randint(3, model.config.vocab_size, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids.to(model.device), "position_ids": positions.to(model.device)}


def compared(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
    """[least, median, most] of seconds and of their ratios, after one untimed step of each."""
    names = {"masked": "sdpa", "ours": NAME}
    losses = {name: step(model, batch, attention)[0] for name, attention in names.items()}
    if abs(losses["ours"] - losses["masked"]) > 1e-5 * losses["masked"]:
        raise SystemExit(f"the two attentions do not agree: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(REPEATS):
        for name, attention in names.items():
            seconds[name].append(step(model, batch, attention)[1])
    ratios = [masked / ours for masked, ours in zip(*seconds.values(), strict=True)]
    return {**{name: spread(times) for name, times in seconds.items()}, "ratio": spread(ratios)}


def step(model: nn.Module, batch: dict[str, Tensor], attention: str) -> tuple[float, float]:
    """Loss and seconds of a forward and backward."""
    model.set_attn_implementation(attention)
    model.zero_grad()
    began = time.perf_counter()
    loss = model(**batch, labels=batch["input_ids"], use_cache=False).loss
    loss.backward()
    value = loss.item()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return value, time.perf_counter() - began


if __name__ == "__main__":
    main()
