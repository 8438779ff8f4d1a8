"""From logits and a random number to a token: the inverse of the cumulative distribution, one stream a row.

Sampling at a vocabulary of 150,000 costs as much as the reads and writes of [rows, vocabulary] that it makes. Here it
is one exponential and one sum: running sums are taken of blocks of tokens, then inside the one block that the random
number falls into. Truncation needs no sort: every rule keeps the tokens from some logit upwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from grpo.config import SamplingConfig

SMALL = 1024  # tokens up to which a vocabulary is one block
BLOCK = 128  # tokens whose probabilities are summed before running sums are taken
NUCLEUS = 64  # tokens that top_p looks at first; eight times as many wherever their probability is not enough


class Drawn(NamedTuple):
    """tokens_B: int64. logprobs_B: float32, of the distribution that was drawn from: at the sampling temperature,
    under the repetition penalty, over the kept tokens. kept_BV: which those are; None where nothing was cut off."""

    tokens_B: Tensor
    logprobs_B: Tensor
    kept_BV: Tensor | None


def cuts(cfg: SamplingConfig) -> bool:
    """Whether the rules give some tokens no chance at some positions."""
    return truncates(cfg) or cfg.min_completion_length > 0


def truncates(cfg: SamplingConfig) -> bool:
    return cfg.top_k > 0 or cfg.top_p < 1 or bool(cfg.min_p)


class Draw:
    """The sampling rules of a run, applied to one position of many rows; in transformers' order: repetition penalty,
    minimum length, temperature, top_k, top_p, min_p. Tokens that tie with the last kept one are kept too.

    eos_ids: the tokens that may not come before `min_completion_length`.
    """

    def __init__(self, cfg: SamplingConfig, eos_ids: Sequence[int] = ()) -> None:
        self.cfg, self.eos_ids = cfg, list(eos_ids)
        self.ends_V: Tensor | None = None  # once for all draws: an index that is a list waits for the device

    def __call__(
        self,
        logits_BV: Tensor,
        uniforms_B: Tensor,
        *,
        seen_BV: Tensor | None = None,
        short_B: Tensor | None = None,
    ) -> Drawn:
        """`uniforms_B` float64 in [0, 1); `seen_BV`: True for tokens that the repetition penalty knows; `short_B`: True
        for rows whose completion is not long enough yet to end, None if there is none."""
        scaled_BV = self._scaled(logits_BV.float(), seen_BV, short_B)
        highest_B1 = scaled_BV.amax(-1, keepdim=True)
        weights_BV = (scaled_BV - highest_B1).exp_()
        kept_BV = None
        if truncates(self.cfg):
            kept_BV = scaled_BV >= self._floor(scaled_BV, highest_B1, weights_BV)
        elif short_B is not None:
            kept_BV = scaled_BV > -math.inf
        if kept_BV is not None:
            weights_BV.masked_fill_(~kept_BV, 0.0)
        tokens_B1, total_B1 = inverse_cdf(weights_BV, uniforms_B)
        logprobs_B1 = scaled_BV.gather(1, tokens_B1) - highest_B1 - total_B1.log().float()
        return Drawn(tokens_B1[:, 0], logprobs_B1[:, 0], kept_BV)

    def _scaled(self, logits_BV: Tensor, seen_BV: Tensor | None, short_B: Tensor | None) -> Tensor:
        if seen_BV is not None:
            penalty = self.cfg.repetition_penalty
            penalised_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
            logits_BV = torch.where(seen_BV, penalised_BV, logits_BV)
        if short_B is not None:
            if self.ends_V is None:
                self.ends_V = torch.zeros(logits_BV.shape[1], dtype=torch.bool, device=logits_BV.device)
                self.ends_V[[token for token in self.eos_ids if token < len(self.ends_V)]] = True
            logits_BV = logits_BV.masked_fill(short_B[:, None] & self.ends_V, -math.inf)
        return logits_BV if self.cfg.temperature == 1 else logits_BV / self.cfg.temperature

    def _floor(self, scaled_BV: Tensor, highest_B1: Tensor, weights_BV: Tensor) -> Tensor:
        """The lowest logit that is kept, (B, 1)."""
        cfg, floor_B1, most = self.cfg, torch.full_like(highest_B1, -math.inf), scaled_BV.shape[1]
        if cfg.top_k:
            most = min(cfg.top_k, most)
            floor_B1 = scaled_BV.topk(most).values[:, -1:]
            weights_BV = weights_BV.masked_fill(scaled_BV < floor_B1, 0.0)
        if cfg.top_p < 1:
            total_B1 = weights_BV.sum(-1, keepdim=True)
            floor_B1 = floor_B1.maximum(nucleus_floor(scaled_BV, highest_B1 + total_B1.log(), cfg.top_p, most))
        if cfg.min_p:
            floor_B1 = floor_B1.maximum(highest_B1 + math.log(cfg.min_p))
        return floor_B1


def nucleus_floor(scaled_BV: Tensor, normaliser_B1: Tensor, top_p: float, most: int, size: int = NUCLEUS) -> Tensor:
    """The logit (B, 1) of the last token that is needed to have `top_p` of the probability, the likeliest first.

    `most`: beyond so many, tokens have no chance or tie with the last of them. Where these are more than `size`, the
    device is asked once whether that was enough: sorting all of a large vocabulary costs a GPU far more than the wait.
    """
    top_BK = scaled_BV.topk(min(size, most)).values
    chances_BK = (top_BK - normaliser_B1).double().exp_()
    needed_BK = chances_BK.cumsum(-1) - chances_BK < top_p
    floor_B1 = top_BK.gather(1, needed_BK.sum(-1, keepdim=True) - 1)
    unfinished_B = needed_BK[:, -1]
    if size < most and unfinished_B.any():
        few_BV, normaliser_B1 = scaled_BV[unfinished_B], normaliser_B1[unfinished_B]
        floor_B1[unfinished_B] = nucleus_floor(few_BV, normaliser_B1, top_p, most, 8 * size)
    return floor_B1


def inverse_cdf(weights_BV: Tensor, uniforms_B: Tensor) -> tuple[Tensor, Tensor]:
    """For each row the first token, (B, 1), at which the running sum of its weights (at least 0, not all 0) is above
    `uniforms_B` (in [0, 1)) of the whole, and the whole, (B, 1), float64. A token of weight 0 is never drawn."""
    vocabulary = weights_BV.shape[1]
    if vocabulary <= SMALL:
        cdf = weights_BV.double().cumsum(-1)
        return _first_above(cdf, uniforms_B[:, None] * cdf[:, -1:]), cdf[:, -1:]
    even = vocabulary // BLOCK * BLOCK
    sums = weights_BV[:, :even].unflatten(1, (-1, BLOCK)).sum(-1)
    if even < vocabulary:
        sums = torch.cat([sums, weights_BV[:, even:].sum(-1, keepdim=True)], dim=1)
    cdf = sums.double().cumsum(-1)
    whole_B1 = cdf[:, -1:]
    target_B1 = uniforms_B[:, None] * whole_B1
    block_B1 = _first_above(cdf, target_B1)
    inside = block_B1 * BLOCK + torch.arange(BLOCK, device=weights_BV.device)
    weights = weights_BV.gather(1, inside.clamp(max=vocabulary - 1)).double().masked_fill_(inside >= vocabulary, 0.0)
    before_B1 = pad(cdf, (1, 0)).gather(1, block_B1)
    return block_B1 * BLOCK + _first_above(weights.cumsum(-1), target_B1 - before_B1), whole_B1


def _first_above(cdf: Tensor, target_B1: Tensor) -> Tensor:
    """The first place where the running sum is above the target; one that rounding put beyond the end is at the end."""
    last = torch.nextafter(cdf[:, -1:], torch.full_like(target_B1, -1.0))
    return torch.searchsorted(cdf, target_B1.minimum(last), right=True)
