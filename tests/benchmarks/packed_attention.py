"""Which attention of a packed update is the fastest on a device: `grpo.policy.branching`'s own, or FlexAttention.

    python -m tests.benchmarks.packed_attention [--device cuda] [--json FILE] [--quick]

A layer's forward and backward over 8 prompts with 8 completions each, with the heads of `workload`'s models, in bf16 on
a GPU, in fp32 on a CPU. Results and gradients are compared, then the two take turns; medians and spreads of five. What
is made once for a pack is in the time, shared by the layers. The ratio is by_rows' time over the other's.

torch 2.13 refuses FlexAttention's backward on a CPU: there, its results are compared on a small pack, and no more.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from grpo.packing import Branches, whole_rows
from grpo.policy.branching import by_rows, by_stretches
from tests.benchmarks.measure import spread, timed
from tests.benchmarks.workload import SIZES, Workload

WORKLOADS = [Workload.draw(groups=8, size=8, prompt=prompt, completion=512) for prompt in (64, 512, 2048)]
SMALL = Workload.draw(groups=2, size=4, prompt=160, completion=48)  # four blocks of a mask, of 128 tokens each
OTHER = {"cpu": "by_stretches", "cuda": "flex"}  # what takes turns with by_rows
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
TOLERANCE = {"cpu": 1e-5, "cuda": 2e-2}  # bf16 on a CPU: at most 5e-3; a token that does not see itself: 0.4
LAYERS = {"cpu": 1, "cuda": 24}  # that share what is made for a pack: on a CPU next to nothing
REPEATS = 5

# Every pack of a training has a length of its own: without `dynamic`, it would be compiled again.
compiled_attention = torch.compile(flex_attention, dynamic=True)
compiled_mask = torch.compile(create_block_mask, dynamic=True)


# In this file until it is the fastest somewhere.
def by_flex(q: Tensor, k: Tensor, v: Tensor, branches: Branches, scaling: float) -> Tensor:
    """Over the pack as it stands: no padding, no copies."""
    mask = mask_of(branches, q.device)
    attention = compiled_attention if q.is_cuda else flex_attention
    mixed = attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask, scale=scaling)
    return mixed[0].transpose(0, 1)


@lru_cache(maxsize=1)  # the layers of a forward ask one after another
def mask_of(branches: Branches, device: torch.device) -> BlockMask:
    spans = [*branches.prompts, *(own for owns in branches.completions for own in owns)]
    prompt_of = [*range(len(branches.prompts)), *(n for n, owns in enumerate(branches.completions) for _ in owns)]
    lengths = torch.tensor([end - start for start, end in spans])
    span_N = torch.arange(len(spans)).repeat_interleave(lengths).to(device)
    prompt_N = torch.tensor(prompt_of).repeat_interleave(lengths).to(device)

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((span_N[key] == span_N[query]) | (span_N[key] == prompt_N[query]))

    make = compiled_mask if device.type == "cuda" else create_block_mask
    return make(visible, None, None, len(span_N), len(span_N), device)


ATTENTIONS = {"by_rows": by_rows, "by_stretches": by_stretches, "flex": by_flex}


class Case(NamedTuple):
    """q, k, v: (N, heads, .) each, as `attend` gets them. gradient: what comes back to the mixed values."""

    qkv: list[Tensor]
    gradient: Tensor
    branches: Branches

    @classmethod
    def draw(cls, kind: str, device: str, workload: Workload, seed: int) -> Case:
        """The prompts come in the seed's order: what was made for the pack before does not serve this one."""
        groups = list(workload.lengths.items())
        random.Random(seed).shuffle(groups)
        # as in `pack`, without a row's last token
        owns = [min(length, workload.longest) - 1 for _, lengths in groups for length in lengths]
        spans = whole_rows([*(len(prompt) for prompt, _ in groups), *owns]).prompts
        own = iter(spans[len(groups) :])
        completions = tuple(tuple(next(own) for _ in lengths) for _, lengths in groups)
        heads, of_query, of_value = heads_of(SIZES[kind, device])
        torch.manual_seed(seed)
        *qkv, gradient = (
            torch.randn(spans[-1][1], heads, size, dtype=DTYPE[device], device=device)
            for size in (of_query, of_query, of_value, of_value)
        )
        return cls(qkv, gradient, Branches(prompts=spans[: len(groups)], completions=completions))

    def forward(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        padding = 0 if name == "flex" else q.shape[-1] - v.shape[-1]  # as in `attend`
        mixed = ATTENTIONS[name](q, k, F.pad(v, (0, padding)), self.branches, q.shape[-1] ** -0.5)
        return mixed[..., : v.shape[-1]]

    def both(self, name: str) -> list[Tensor]:
        """What comes out, and the gradients of q, k and v."""
        leaves = [x.detach().requires_grad_() for x in self.qkv]
        mixed = self.forward(name, *leaves)
        return [mixed.detach(), *torch.autograd.grad(mixed, leaves, self.gradient)]


def heads_of(sizes: dict[str, Any]) -> tuple[int, int, int]:
    """Heads, numbers of a query or key, numbers of a value; key heads are repeated, as in the packed update."""
    heads, D = sizes["num_attention_heads"], sizes.get("head_dim")
    return (heads, D, D) if D else (heads, sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"], sizes["v_head_dim"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    other, found = OTHER[args.device], []
    print(f"| model | tokens | of prompts | ms: by_rows | ms: {other} | ratio | ms: mask of a pack |\n{'|---' * 7}|")
    for kind in ("v3", "qwen3"):
        for workload in [SMALL] if args.quick else WORKLOADS:
            found.append({"model": kind, **compared(kind, args.device, workload)})
            print(line(found[-1], other), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def line(point: dict[str, Any], other: str) -> str:
    scales = {"by_rows": 1e3, other: 1e3, "ratio": 1, "mask": 1e3}
    cells = [[scale * value for value in point.get(name, [])] for name, scale in scales.items()]
    shown = " | ".join(f"{cell[1]:.2f} ({cell[0]:.2f} to {cell[2]:.2f})" if cell else "-" for cell in cells)
    return f"| {point['model']} | {point['tokens']:,} | {point['prompts']:,} | {shown} |"


def compared(kind: str, device: str, workload: Workload) -> dict[str, Any]:
    """Differences from by_rows, then [least, median, most] of seconds and of ratios."""
    other, case = OTHER[device], Case.draw(kind, device, workload, 0)
    differences = {other: difference(case.both(other), case.both("by_rows"))}
    if device == "cpu":
        small = Case.draw(kind, device, SMALL, 0)
        differences["flex"] = difference(*([small.forward(name, *small.qkv)] for name in ("flex", "by_rows")))
    if not max(differences.values()) < TOLERANCE[device]:
        raise SystemExit(f"the attentions do not agree with by_rows: {differences}")
    seconds: dict[str, list[float]] = {"by_rows": [], other: [], "mask": []}
    for seed in range(1, 1 + REPEATS):
        case, place = Case.draw(kind, device, workload, seed), torch.device(device)
        for name in ("by_rows", other):
            seconds[name].append(timed(partial(case.both, name), place, times=LAYERS[device]))
        if other == "flex":
            seconds["mask"].append(timed(partial(mask_of.__wrapped__, case.branches, place), place))
    ratios = [rows / others for rows, others in zip(seconds["by_rows"], seconds[other], strict=True)]
    spreads = {name: spread(values) for name, values in seconds.items() if values}
    shape = {"tokens": len(case.gradient), "prompts": sum(map(len, workload.lengths))}
    return {**shape, "differences": differences, **spreads, "ratio": spread(ratios)}


def difference(ones: list[Tensor], others: list[Tensor]) -> float:
    """The largest norm of a difference over the norm."""
    return max(float((one - other).norm() / other.norm()) for one, other in zip(ones, others, strict=True))


if __name__ == "__main__":
    main()
