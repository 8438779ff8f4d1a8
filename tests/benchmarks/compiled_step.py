"""What could be won by compiling the built-in engine's decode step, or on a GPU by replaying it as a CUDA graph.

    python -m tests.benchmarks.compiled_step [--model v3|qwen3] [--size quick|cpu|cuda] [--rows 128] [--prompt 64]
        [--length 64] [--threads N] [--json FILE] [--quick]

One shape: so many rows, groups of 8, each with so many tokens of its own. Sampling meets many shapes: what is won here
is the most that can be won, the seconds of compiling the least that must be paid, once a process. The logits are
compared, then the ways take turns; medians and spreads of five times 20 steps. `--size`: the model, as in `grpo_step`,
"quick" for the recipes' tiny one; "cuda" runs on a GPU. --quick: the tiny model and a handful of rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo.policy.experts import drop_group_masks
from grpo.policy.load import prepare_for_autocast
from grpo.policy.tiny_v3 import build_tokenizer
from grpo.sampling.decode import Decoder
from tests.benchmarks.measure import spread, timed
from tests.benchmarks.workload import build_model

GROUP, REPEATS, STEPS = 8, 5, 20
TOLERANCE = {"cpu": 1e-4, "cuda": 0.1}  # of a logit: fp32, bf16
Once = Callable[[], Tensor]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["v3", "qwen3"], default="v3")
    parser.add_argument("--size", choices=["quick", "cpu", "cuda"], default="cpu")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.size, args.rows, args.prompt, args.length = "quick", 16, 5, 3
    device = torch.device("cuda" if args.size == "cuda" else "cpu")
    model = build_model(args.model, args.size, build_tokenizer()).to(device).eval()
    drop_group_masks(model)  # as a run's policy is loaded
    bf16 = device.type == "cuda"  # as a run on a GPU has it: weights in fp32, computed in bf16
    if bf16:
        prepare_for_autocast(model, device)
    quiet = torch.no_grad if bf16 else torch.inference_mode  # as the sampler has it
    with quiet(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        found = compared(*in_flight(model, args.rows, args.prompt, args.length))
    print("| way | seconds to make | ms of a step | plain step over it | steps to pay for it |\n|---|---|---|---|---|")
    for name, way in found.items():
        print(line(name, way))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def line(name: str, way: dict[str, Any]) -> str:
    low, middle, high = way["ratio"]
    pays = "" if name == "plain" else f"{way['pays_after']:,.0f}" if way["pays_after"] else "never"
    return f"| {name} | {way['made']:.1f} | {way['ms'][1]:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) | {pays} |"


def in_flight(model: nn.Module, rows: int, prompt: int, length: int) -> tuple[Decoder, Tensor]:
    """A decoder whose rows have `length` tokens of their own, and the tokens that come next."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, model.config.vocab_size, (-(-rows // GROUP), prompt), generator=generator).tolist()
    dtype = torch.bfloat16 if torch.is_autocast_enabled(model.device.type) else torch.float32
    decoder = Decoder(model, max_new=length + 1, dtype=dtype)
    decoder.place(decoder.read(prompts), torch.arange(rows, device=model.device) // GROUP)
    tokens = torch.randint(3, model.config.vocab_size, (rows,), generator=generator).to(model.device)
    for _ in range(length):
        decoder.step(tokens)
    return decoder, tokens


def compared(decoder: Decoder, tokens: Tensor) -> dict[str, dict[str, Any]]:
    """By way: seconds to make it, [least, median, most] of milliseconds of a step and of the plain step's over it, and
    after how many steps it has paid for itself; None for never."""
    device = decoder.device

    def again(step: Callable[[Tensor], Tensor]) -> Tensor:
        """The same step each time: what the decoder counts is put back."""
        longest, lengths = decoder.longest, decoder.lengths
        logits = step(tokens)
        decoder.longest, decoder.lengths = longest, lengths
        return logits

    compiled = torch.compile(decoder.step, dynamic=True)
    if decoder.own[0].dtype == torch.float32:  # torch compiles grouped products in bf16 alone, but transformers' own
        compiled = mock.patch.object(F, "grouped_mm", torch.ops.transformers.grouped_mm_fallback)(compiled)
    ways: dict[str, Once] = {"plain": lambda: again(decoder.step), "compiled": lambda: again(compiled)}
    logits = ways["plain"]()
    made = {"plain": 0.0, "compiled": timed(ways["compiled"], device)}
    if device.type == "cuda":
        made["CUDA graph"] = timed(lambda: ways.update({"CUDA graph": captured(ways["plain"])}), device)
    for name, once in ways.items():
        if (gap := (once() - logits).abs().max().item()) > TOLERANCE[device.type]:
            raise SystemExit(f"{name}: a logit differs from the plain step's by {gap}")
    ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, once in ways.items():
            ms[name].append(sum(timed(once, device) for _ in range(STEPS)) / STEPS * 1e3)
    found = {}
    for name, times in ms.items():
        ratios = [plain / own for plain, own in zip(ms["plain"], times, strict=True)]
        won = spread(ms["plain"])[1] - spread(times)[1]
        pays = made[name] * 1e3 / won if won > 0 else None
        found[name] = {"made": made[name], "ms": spread(times), "ratio": spread(ratios), "pays_after": pays}
    return found


def captured(once: Once) -> Once:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = once()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


if __name__ == "__main__":
    main()
