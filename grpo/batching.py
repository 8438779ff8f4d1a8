"""Scored groups -> a TrainBatch; a batch -> minibatches (one update each) and micro-batches (one forward each)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from grpo.types import Rollout, ScoredGroup, TrainBatch


def collate(
    scored: Sequence[ScoredGroup],
    advantages_PG: torch.Tensor,
    counts_PG: torch.Tensor,
    *,
    positions: Sequence[int],
    pad_id: int,
) -> TrainBatch:
    """Rows of all groups, padded on the right. Rows outside `counts_PG` keep an empty mask, so they weigh nothing.

    `positions`: each group's number p in the whole round; row numbers are p * G + g.
    """
    group_size = advantages_PG.shape[1]
    rollouts = [rollout for group in scored for rollout in group.group.rollouts]
    width = max((len(r.prompt_ids) + len(r.completion_ids) for r in rollouts), default=2)
    input_ids = torch.full((len(rollouts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rollouts), width - 1), dtype=torch.bool)
    sampler_logprobs = torch.zeros((len(rollouts), width - 1))
    for row, rollout in enumerate(rollouts):
        _fill(rollout, input_ids[row], mask[row], sampler_logprobs[row])
    row_ids = [p * group_size + g for p in positions for g in range(group_size)]
    return TrainBatch(
        input_ids_BL=input_ids,
        completion_mask_BT=mask & counts_PG.reshape(-1, 1),
        advantages_B=advantages_PG.reshape(-1).float(),
        row_ids_B=torch.tensor(row_ids, dtype=torch.int64),
        sampler_logprobs_BT=sampler_logprobs,
    )


def _fill(rollout: Rollout, input_ids_L: torch.Tensor, mask_T: torch.Tensor, logprobs_T: torch.Tensor) -> None:
    prompt, completion = len(rollout.prompt_ids), len(rollout.completion_ids)
    input_ids_L[: prompt + completion] = torch.tensor(rollout.prompt_ids + rollout.completion_ids)
    mask_T[prompt - 1 : prompt + completion - 1] = True
    logprobs_T[prompt - 1 : prompt + completion - 1] = torch.tensor(rollout.sampler_logprobs)


def minibatches(batch: TrainBatch, num_minibatches: int, num_rows: int, seed: tuple[int, ...]) -> list[TrainBatch]:
    """Cut the round's `num_rows` rows at random into equal minibatches; this process's part of each.

    The cut is a function of global row numbers and `seed`, so it is the same on any number of processes; a process may
    hold no row of a minibatch.
    """
    if num_minibatches == 1:
        return [batch]
    order = list(range(num_rows))
    random.Random(repr(seed)).shuffle(order)
    slot_of_row = torch.empty(num_rows, dtype=torch.int64)
    slot_of_row[torch.tensor(order)] = torch.arange(num_rows) * num_minibatches // num_rows
    slots_B = slot_of_row[batch.row_ids_B.cpu()].to(batch.row_ids_B.device)
    return [batch.rows((slots_B == slot).nonzero()[:, 0]) for slot in range(num_minibatches)]


def counted(batch: TrainBatch) -> TrainBatch:
    """Only the rows that can move the loss: the others hold no counted token."""
    return batch.rows(batch.completion_mask_BT.any(dim=1).nonzero()[:, 0])


def microbatches(batch: TrainBatch, max_tokens: int, at_least: int = 0) -> list[TrainBatch]:
    """Cut into forwards of at most `max_tokens` padded tokens (one row at least), longest rows first, each trimmed.

    `at_least` appends copies of a row without any counted token, so that every process runs as many forwards as the
    busiest one (sharded parameters are gathered together).
    """
    batch = counted(batch)
    lengths_B, order = torch.sort(batch.lengths_B, descending=True, stable=True)
    pieces, start = [], 0
    while start < len(order):
        rows = max(1, max_tokens // int(lengths_B[start]))
        pieces.append(batch.rows(order[start : start + rows]).trim())
        start += rows
    return pieces + [_empty_forward(batch)] * (at_least - len(pieces))


def _empty_forward(batch: TrainBatch) -> TrainBatch:
    device = batch.input_ids_BL.device
    blank_BT = torch.zeros((1, 1), device=device)
    optional = [
        name for name in ("old_logprobs_BT", "ref_logprobs_BT", "loss_weights_BT") if getattr(batch, name) is not None
    ]
    return replace(
        batch,
        input_ids_BL=torch.zeros((1, 2), dtype=torch.int64, device=device),
        completion_mask_BT=torch.zeros((1, 1), dtype=torch.bool, device=device),
        advantages_B=torch.zeros(1, device=device),
        row_ids_B=torch.zeros(1, dtype=torch.int64, device=device),
        sampler_logprobs_BT=blank_BT,
        **dict.fromkeys(optional, blank_BT),
    )
