"""Attention of rows packed side by side for a trainer: each row attends to itself, and no mask over the pack is made.

transformers' sdpa computes every score of a pack and masks those between rows, and trl makes one pack of a batch: with
rows of 45 tokens, 98 % of 2,048 x 2,048 scores are thrown away.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface

from grpo.distributed import Dist
from grpo.packing import Branches, whole_rows
from grpo.policy.branching import attend
from grpo.policy.load import Policy
from grpo.policy.packed import unpackable

NAME = "packed_rows"  # transformers makes no mask for a name that it does not know


class PackedAttention:
    """What transformers' attention layers call: query (B, heads, L, D), key and value (B, key heads, L, .) ->
    (B, L, heads, .). A row starts wherever a position is 0."""

    def __init__(self) -> None:
        self.positions: Tensor | None = None
        self.branches = Branches(prompts=(), completions=())

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *,
        scaling: float, position_ids: Tensor, **_: Any
    ) -> tuple[Tensor, None]:  # fmt: skip
        shared = query.shape[1] // key.shape[1]  # queries of a key head
        heads = (query, *(x.repeat_interleave(shared, dim=1) for x in (key, value)))
        flat = (x.transpose(1, 2).flatten(0, 1) for x in heads)
        mixed = attend(*flat, branches=self.rows(position_ids, len(query)), scaling=scaling)
        return mixed.view(len(query), -1, *mixed.shape[1:]), None

    def rows(self, positions: Tensor, batch: int) -> Branches:
        """Found once a forward: the layers pass the same tensor, (B, L), or (1, L) for all."""
        if positions is not self.positions:
            every = positions.expand(batch, -1).flatten()
            starts = (every == 0).nonzero().flatten().tolist()
            ends = [*starts[1:], len(every)]
            self.positions = positions
            self.branches = whole_rows([end - start for start, end in zip(starts, ends, strict=True)])
        return self.branches


def use_packed_attention(policy: Policy, dist: Dist) -> None:
    """Where the model runs sdpa and its family is known; else it keeps what it has."""
    if policy.network.config._attn_implementation == "sdpa" and unpackable(policy, dist) is None:
        AttentionInterface.register(NAME, PackedAttention())
        policy.network.set_attn_implementation(NAME)
