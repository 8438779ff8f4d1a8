"""Scored groups -> a TrainBatch; a batch -> minibatches (one update each) and micro-batches (one forward each)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from grpo.sampling_mask import SamplingMask
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

    `positions`: each group's number p in the whole round; row numbers are p * G + g. Rows share a prompt where its
    tokens are the same, as siblings do.
    """
    group_size = advantages_PG.shape[1]
    rollouts = [rollout for group in scored for rollout in group.group.rollouts]
    width = max((len(r.prompt_ids) + len(r.completion_ids) for r in rollouts), default=2)
    input_ids = torch.full((len(rollouts), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rollouts), width - 1), dtype=torch.bool)
    sampler_logprobs = torch.zeros((len(rollouts), width - 1))
    for row, rollout in enumerate(rollouts):
        _fill(rollout, input_ids[row], mask[row], sampler_logprobs[row])
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of = [numbers.setdefault(r.prompt_ids, len(numbers)) for r in rollouts]
    row_ids = [p * group_size + g for p in positions for g in range(group_size)]
    return TrainBatch(
        input_ids_BL=input_ids,
        completion_mask_BT=mask & counts_PG.reshape(-1, 1),
        prompt_lengths_B=torch.tensor([len(r.prompt_ids) for r in rollouts], dtype=torch.int64),
        prompt_of_B=torch.tensor(prompt_of, dtype=torch.int64),
        advantages_B=advantages_PG.reshape(-1).float(),
        row_ids_B=torch.tensor(row_ids, dtype=torch.int64),
        sampler_logprobs_BT=sampler_logprobs,
        sampling_masks=_masks(rollouts),
    )


def _masks(rollouts: Sequence[Rollout]) -> tuple[SamplingMask, ...] | None:
    if all(rollout.sampling_mask is None for rollout in rollouts):
        return None
    return tuple(rollout.sampling_mask or SamplingMask.free(len(rollout.completion_ids)) for rollout in rollouts)


def _fill(rollout: Rollout, input_ids_L: torch.Tensor, mask_T: torch.Tensor, logprobs_T: torch.Tensor) -> None:
    prompt, completion = len(rollout.prompt_ids), len(rollout.completion_ids)
    input_ids_L[: prompt + completion] = torch.tensor(rollout.prompt_ids + rollout.completion_ids)
    mask_T[prompt - 1 : prompt + completion - 1] = True
    logprobs_T[prompt - 1 : prompt + completion - 1] = torch.tensor(rollout.sampler_logprobs)


def minibatches(
    batch: TrainBatch, num_minibatches: int, shape: tuple[int, int], seed: tuple[int, ...]
) -> list[TrainBatch]:
    """Cut the round, `shape` = (P, G), at random into minibatches of equal size; this process's part of each.

    Whole groups are dealt out where there are enough of them (sizes then differ by a group at most), for siblings share
    the work on their prompt; else single rows. The cut is a function of P, G and `seed` = (seed, rollout, iteration),
    so it is the same on any number of processes; a process may hold no row of a minibatch.
    """
    if num_minibatches == 1:
        return [batch]
    unit = shape[1] if num_minibatches <= shape[0] else 1
    num_units = shape[0] * shape[1] // unit
    order = list(range(num_units))
    random.Random(repr(seed)).shuffle(order)
    slot_of_unit = torch.empty(num_units, dtype=torch.int64)
    slot_of_unit[torch.tensor(order, dtype=torch.int64)] = torch.arange(num_units) * num_minibatches // num_units
    slots_B = slot_of_unit[batch.row_ids_B // unit]
    return [batch.rows((slots_B == slot).nonzero()[:, 0]) for slot in range(num_minibatches)]


def with_tokens(batch: TrainBatch) -> TrainBatch:
    """Only the rows that can move the loss: the others hold no counted token."""
    return batch.rows(batch.completion_mask_BT.any(dim=1).nonzero()[:, 0])


def informative(batch: TrainBatch) -> TrainBatch:
    """Only the rows that have a gradient: without a KL term, an advantage of 0 makes every loss of the row 0.

    Exact once loss weights are set: the rows left out stay in the normaliser.
    """
    if batch.ref_logprobs_BT is not None:
        return batch
    return batch.rows((batch.advantages_B != 0).nonzero()[:, 0])


def microbatches(batch: TrainBatch, max_tokens: int, at_least: int = 0, *, packed: bool = False) -> list[TrainBatch]:
    """Cut into forwards of at most `max_tokens` tokens (one row at least), the largest first, each trimmed.

    Tokens are padded ones, and rows are sorted by length; or `packed`: no padding, a prompt counts once, and rows that
    share it stay together where the budget allows. `at_least` appends copies of a row without any counted token, so
    that every process runs as many forwards as the busiest one (sharded parameters are gathered together).
    """
    batch = with_tokens(batch)
    cuts = _packed_cuts(batch, max_tokens) if packed else _padded_cuts(batch.lengths_B.tolist(), max_tokens)
    pieces = [batch.rows(torch.tensor(rows)).trim() for rows in cuts]
    return pieces + [_empty_forward(batch)] * (at_least - len(pieces))


def _padded_cuts(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cuts, start = [], 0
    while start < len(order):
        rows = max(1, max_tokens // lengths[order[start]])
        cuts.append(order[start : start + rows])
        start += rows
    return cuts


def _packed_cuts(batch: TrainBatch, max_tokens: int) -> list[list[int]]:
    """Bundles of siblings, the largest first, each into the first forward that has room for it."""
    forwards: list[_Forward] = []
    for bundle in sorted(_bundles(batch, max_tokens), key=lambda bundle: bundle.room):
        tokens = max_tokens - bundle.room
        home = next((forward for forward in forwards if forward.room >= tokens), None)
        if home is None:
            forwards.append(bundle)
        else:
            home.rows += bundle.rows
            home.room -= tokens
    return [forward.rows for forward in sorted(forwards, key=lambda forward: forward.room)]


def _bundles(batch: TrainBatch, max_tokens: int) -> list[_Forward]:
    """Rows with the same prompt, together where they fit; each bundle counts the prompt once."""
    lengths, prompt_lengths = batch.lengths_B.tolist(), batch.prompt_lengths_B.tolist()
    prompt_of = batch.prompt_of_B.tolist()
    bundles: list[_Forward] = []
    latest: dict[int, _Forward] = {}
    for row in sorted(range(len(batch)), key=lambda row: -lengths[row]):
        prompt, tokens = prompt_of[row], lengths[row] - prompt_lengths[row]
        if prompt not in latest or latest[prompt].room < tokens:
            latest[prompt] = _Forward([], max_tokens - prompt_lengths[row])
            bundles.append(latest[prompt])
        latest[prompt].rows.append(row)
        latest[prompt].room -= tokens
    return bundles


@dataclass
class _Forward:
    """Rows of one forward, and how many tokens more it may have; below 0 for a row that is too long by itself."""

    rows: list[int]
    room: int


def _empty_forward(batch: TrainBatch) -> TrainBatch:
    blank_BT = torch.zeros((1, 1))
    optional = [
        name for name in ("old_logprobs_BT", "ref_logprobs_BT", "loss_weights_BT") if getattr(batch, name) is not None
    ]
    return replace(
        batch,
        input_ids_BL=torch.zeros((1, 2), dtype=torch.int64),
        completion_mask_BT=torch.zeros((1, 1), dtype=torch.bool),
        prompt_lengths_B=torch.ones(1, dtype=torch.int64),
        prompt_of_B=torch.zeros(1, dtype=torch.int64),
        advantages_B=torch.zeros(1),
        row_ids_B=torch.zeros(1, dtype=torch.int64),
        sampler_logprobs_BT=blank_BT,
        sampling_masks=None,
        **dict.fromkeys(optional, blank_BT),
    )
