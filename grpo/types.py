"""The nouns that flow through one training step, in the order in which they are made.

Problem -> Rollout -> RolloutGroup -> ScoredGroup -> advantages_PG -> TrainBatch -> UpdateStats

Dimension key, used as a suffix on tensors and on lists: **P** problems of one rollout, **G** completions per problem,
**B** = P x G rows, **L** tokens of a row (prompt and completion), **T** = L - 1 predicted positions, **V** vocabulary.

An *update* is one optimizer step; a *rollout* is one round of sampling, used for one or more updates.
Four log-probabilities are never mixed: `policy_logprobs` (the model being trained, now), `old_logprobs` (the same
model when the batch was sampled, as the trainer computes them), `sampler_logprobs` (what the sampling engine
reported), `ref_logprobs` (the frozen reference).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch

from data.problem import Problem
from grpo.device import sent
from grpo.sampling_mask import SamplingMask
from rewards.reward import Verdict

StopReason = Literal["eos", "stop", "length", "missing"]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One completion. `sampler_logprobs`: natural log, one per completion id, of the distribution that was drawn from:
    at the sampling temperature, over the tokens that truncation (top_p and the like) left. `sampling_mask`: which those
    were, for each completion id; None where all of them were, or where nobody trains on the row. The end-of-sequence id
    is part of `completion_ids`."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    text: str
    stop_reason: StopReason
    sampling_mask: SamplingMask | None = None

    def __post_init__(self) -> None:
        assert len(self.completion_ids) == len(self.sampler_logprobs) > 0
        assert self.sampling_mask is None or len(self.sampling_mask) == len(self.completion_ids)
        assert self.prompt_ids

    @classmethod
    def missing(cls, prompt_ids: Sequence[int], pad_id: int) -> Rollout:
        """What stands for a completion that never came back from a server: no reward sees it, it teaches nothing."""
        return cls(
            prompt_ids=tuple(prompt_ids),
            completion_ids=(pad_id,),
            sampler_logprobs=(0.0,),
            text="",
            stop_reason="missing",
        )

    @property
    def truncated(self) -> bool:
        return self.stop_reason == "length"


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The G completions sampled for one problem; the unit inside which rewards are normalised."""

    problem: Problem
    rollouts: tuple[Rollout, ...]

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def missing(self) -> bool:
        """Whether it never came back: siblings travel together."""
        return self.rollouts[0].stop_reason == "missing"


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """A group with its rewards, one entry per rollout (all lists have length G).

    rewards_G: weighted sum of the parts that applied; NaN where the row is masked (a part failed, or none applied).
    parts: reward name -> un-weighted score, None where it does not apply.
    verdicts: reward name -> verdict, None where the function gave none. correct_G: None where nothing judged it.
    extra: further columns for the completions table.
    """

    group: RolloutGroup
    rewards_G: list[float]
    correct_G: list[bool | None]
    parts: Mapping[str, list[float | None]]
    verdicts: Mapping[str, list[Verdict | None]]
    reasons: Mapping[str, list[str]] = field(default_factory=dict)
    extra: Mapping[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.group)
        lists = [self.rewards_G, self.correct_G, *self.parts.values(), *self.verdicts.values()]
        assert all(len(values) == size for values in lists)

    def without_masks(self) -> ScoredGroup:
        """The same for who only looks at it: light enough to be sent between processes."""
        rollouts = tuple(replace(rollout, sampling_mask=None) for rollout in self.group.rollouts)
        return replace(self, group=replace(self.group, rollouts=rollouts))


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """Right-padded rows, in CPU memory until a forward takes its share. T = L - 1: position t predicts token t + 1.

    input_ids_BL: int64. completion_mask_BT: True where the predicted token belongs to the completion and counts.
    prompt_lengths_B: tokens of each row's prompt, int64. prompt_of_B: int64; rows with the same number have the same
    prompt. advantages_B: one number per row. sampler/old/ref_logprobs_BT: float, meaningful only under the mask; None
    where not needed. loss_weights_BT: what each token's loss is multiplied with before the sum (see weighting.py).
    row_ids_B: global row number p * G + g, the same on any number of processes. sampling_masks: for each row, which
    tokens its draws could choose from, on the CPU, one list for every token of the completion; None where none was cut.
    """

    input_ids_BL: torch.Tensor
    completion_mask_BT: torch.Tensor
    prompt_lengths_B: torch.Tensor
    prompt_of_B: torch.Tensor
    advantages_B: torch.Tensor
    row_ids_B: torch.Tensor
    sampler_logprobs_BT: torch.Tensor
    old_logprobs_BT: torch.Tensor | None = None
    ref_logprobs_BT: torch.Tensor | None = None
    loss_weights_BT: torch.Tensor | None = None
    sampling_masks: tuple[SamplingMask, ...] | None = None

    def __post_init__(self) -> None:
        rows, length = self.input_ids_BL.shape
        for name in ("completion_mask_BT", "sampler_logprobs_BT", "old_logprobs_BT", "ref_logprobs_BT"):
            value = getattr(self, name)
            assert value is None or value.shape == (rows, length - 1), (name, value.shape, (rows, length - 1))
        per_row = (self.prompt_lengths_B, self.prompt_of_B, self.advantages_B, self.row_ids_B)
        assert all(value.shape == (rows,) for value in per_row)
        assert self.sampling_masks is None or len(self.sampling_masks) == rows

    def __len__(self) -> int:
        return self.input_ids_BL.shape[0]

    @property
    def lengths_B(self) -> torch.Tensor:
        """Tokens of each row up to its last counted one, int64: prompt and completion; 1 for a row without counted
        tokens (masked, truncated), which no forward needs."""
        positions_T = torch.arange(1, self.completion_mask_BT.shape[1] + 1)
        return (self.completion_mask_BT * positions_T).amax(dim=1) + 1

    def rows(self, index: torch.Tensor) -> TrainBatch:
        """The rows named by `index` (int64), in that order, padding kept."""
        masks = self.sampling_masks and tuple(self.sampling_masks[row] for row in index.tolist())
        picked = {name: value[index] for name, value in self._tensors().items()}
        return replace(self, sampling_masks=masks, **picked)

    def trim(self) -> TrainBatch:
        """Without the padding columns that no row of this batch uses."""
        if not len(self):
            return self
        length = int(self.lengths_B.max())
        cut = {n: v[:, : length - n.endswith("_BT")] for n, v in self._tensors().items() if v.dim() == 2}
        return replace(self, **cut)

    def to(self, device: torch.device) -> TrainBatch:
        return replace(self, **{name: sent(value, device) for name, value in self._tensors().items()})

    def counted_masks(self) -> SamplingMask | None:
        """The sampling masks of the counted tokens, in the order of the completion mask."""
        if not self.sampling_masks:
            return None
        rows_M, columns_M = self.completion_mask_BT.nonzero(as_tuple=True)
        tokens_M = columns_M + 1 - self.prompt_lengths_B[rows_M]
        counts = self.completion_mask_BT.sum(dim=1).tolist()
        pieces = zip(self.sampling_masks, tokens_M.split(counts), strict=True)
        return SamplingMask.joined([mask.at(tokens) for mask, tokens in pieces])

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("a TrainBatch is not a sequence of rows: use rows(index)")
