"""The rows of a forward in one packed row: every prompt once, then the completions, and no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo.device import sent
from grpo.types import TrainBatch

LOGITS_PER_CHUNK = 2**25  # that a packed forward has at a time: 128 MiB in fp32, at most three copies of them alive
Span = tuple[int, int]  # from, to (exclusive), in tokens of the packed row


@dataclass(frozen=True, kw_only=True)
class Branches:
    """What of a packed row attends to what. prompts: where each prompt is. completions: where the rows are that go on
    from it, which may be empty: a row's last token is a target only, and not there."""

    prompts: tuple[Span, ...]
    completions: tuple[tuple[Span, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Pack(Branches):
    """N tokens: the prompts side by side, then the completions, those of one prompt side by side.

    ids_N, positions_N: int64; a position counts from the start of the token's own row. sources_M, targets_M: for each
    of the M tokens under the mask, in the mask's order, the place of the token that predicts it, and its id.
    """

    ids_N: Tensor
    positions_N: Tensor
    sources_M: Tensor
    targets_M: Tensor

    def to(self, device: torch.device) -> Pack:
        names = ("ids_N", "positions_N", "sources_M", "targets_M")
        return replace(self, **{name: sent(getattr(self, name), device) for name in names})


def pack(batch: TrainBatch) -> Pack:
    """Every token that something counted depends on, once."""
    siblings: dict[int, list[int]] = {}
    for row, prompt in enumerate(batch.prompt_of_B.tolist()):
        siblings.setdefault(prompt, []).append(row)
    starts, ends = batch.prompt_lengths_B.tolist(), (batch.lengths_B - 1).tolist()
    pieces = [(rows[0], 0, starts[rows[0]]) for rows in siblings.values()]
    pieces += [(row, starts[row], max(starts[row], ends[row])) for rows in siblings.values() for row in rows]
    spans = _side_by_side([end - start for _, start, end in pieces])
    prompts, own = spans[: len(siblings)], iter(spans[len(siblings) :])
    completions = tuple(tuple(next(own) for _ in rows) for rows in siblings.values())

    rows_N = torch.cat([torch.full((end - start,), row) for row, start, end in pieces])
    positions_N = torch.cat([torch.arange(start, end) for _, start, end in pieces])
    # where each row's own tokens start, and where the last one of its prompt is
    own_B, last_B = torch.empty(2, len(batch), dtype=torch.int64)
    for rows, (_, prompt_end), row_spans in zip(siblings.values(), prompts, completions, strict=True):
        own_B[rows], last_B[rows] = torch.tensor([start for start, _ in row_spans]), prompt_end - 1
    rows_M, columns_M = batch.completion_mask_BT.nonzero(as_tuple=True)
    after_M = columns_M - batch.prompt_lengths_B[rows_M]
    sources_M = torch.where(after_M < 0, last_B[rows_M], own_B[rows_M] + after_M)
    return Pack(
        ids_N=batch.input_ids_BL[rows_N, positions_N],
        positions_N=positions_N,
        prompts=prompts,
        completions=completions,
        sources_M=sources_M,
        targets_M=batch.input_ids_BL[rows_M, columns_M + 1],
    )


def pack_prompts(prompts: Sequence[Sequence[int]]) -> Pack:
    """Prompts alone, with an empty row after each; `sources_M`: their last tokens."""
    whole = whole_rows([len(prompt) for prompt in prompts])
    return Pack(
        ids_N=torch.tensor([token for prompt in prompts for token in prompt]),
        positions_N=torch.cat([torch.arange(len(prompt)) for prompt in prompts]),
        prompts=whole.prompts,
        completions=whole.completions,
        sources_M=torch.tensor([end - 1 for _, end in whole.prompts]),
        targets_M=torch.empty(0, dtype=torch.int64),
    )


def whole_rows(lengths: list[int]) -> Branches:
    """Rows side by side, none of which goes on: each is a prompt with an empty row after it."""
    spans = _side_by_side(lengths)
    return Branches(prompts=spans, completions=tuple(((end, end),) for _, end in spans))


def _side_by_side(lengths: list[int]) -> tuple[Span, ...]:
    spans, place = [], 0
    for length in lengths:
        spans.append((place, place + length))
        place += length
    return tuple(spans)
