"""Model and batch -> log-probabilities of the completion tokens, at the sampling temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.device import sent
from grpo.packing import LOGITS_PER_CHUNK, pack
from grpo.policy.load import Policy
from grpo.policy.packed import last_hidden
from grpo.sampling_mask import SamplingMask
from grpo.types import TrainBatch

NO_CHANCE = -1e9  # a logit; finite, since 0 x infinity would be in the entropy


def token_logprobs(
    policy: Policy, batch: TrainBatch, temperature: float, *, packed: bool = False
) -> tuple[Tensor, Tensor]:
    """`policy_logprobs_BT` and the detached entropies of the full distribution (nats), float32 (B, T).

    Both are 0 outside the completion mask, and of the distribution over the tokens that sampling could choose from,
    where the batch has sampling masks. Rows are padded on the right, so a causal model needs no attention mask:
    no real token can see a pad. The softmax runs on counted tokens only. `packed`: without padding, rows with the same
    prompt share one computation of it, and the head, too, runs on counted tokens only; for policies that
    `grpo.policy.packed.unpackable` has nothing against. The results are equal up to rounding.
    """
    with policy.autocast():
        scores = (_packed if packed else _padded)(policy, batch, temperature)
    places = tuple(sent(place_M, policy.device) for place_M in batch.completion_mask_BT.nonzero(as_tuple=True))
    blank_BT = torch.zeros(batch.completion_mask_BT.shape, device=policy.device)
    logprobs_BT, entropy_BT = (blank_BT.index_put(places, score_M) for score_M in scores)
    return logprobs_BT, entropy_BT


def _padded(policy: Policy, batch: TrainBatch, temperature: float) -> tuple[Tensor, Tensor]:
    rows_M, columns_M = batch.completion_mask_BT.nonzero(as_tuple=True)
    last = batch.completion_mask_BT.shape[1]
    first = int(columns_M.min()) if len(columns_M) else last - 1
    targets_M = sent(batch.input_ids_BL[rows_M, columns_M + 1], policy.device)
    keep = torch.arange(first, last, device=policy.device)
    output = policy.network(input_ids=sent(batch.input_ids_BL, policy.device), use_cache=False, logits_to_keep=keep)
    logits_MV = output.logits[sent(rows_M, policy.device), sent(columns_M - first, policy.device)]
    return _Scores.apply(over_kept(logits_MV, batch.counted_masks()), targets_M, temperature)


def _packed(policy: Policy, batch: TrainBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """The head runs in chunks, each computed again for the gradient, so that [tokens, vocabulary] is never there."""
    network, tokens = policy.network, pack(batch).to(policy.device)
    hidden_MH = network.model.norm(last_hidden(network, tokens)[tokens.sources_M])
    size, device = max(1, LOGITS_PER_CHUNK // network.config.vocab_size), policy.device.type

    def head(hidden: Tensor, targets: Tensor, mask: SamplingMask | None) -> tuple[Tensor, Tensor]:
        # A cast of the weight for each chunk: a cached one would collect their gradients in low precision.
        with torch.autocast(device, enabled=torch.is_autocast_enabled(device), cache_enabled=False):
            return _Scores.apply(over_kept(network.lm_head(hidden), mask), targets, temperature)

    masks, targets = batch.counted_masks(), tokens.targets_M.split(size)
    pieces = [None] * len(targets) if masks is None else masks.split(size)
    chunks = list(zip(hidden_MH.split(size), targets, pieces, strict=True))
    if len(chunks) == 1:
        return head(*chunks[0])
    logprobs, entropies = zip(*(checkpoint(head, *chunk, use_reentrant=False) for chunk in chunks), strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def over_kept(logits_MV: Tensor, mask: SamplingMask | None) -> Tensor:
    """The logits, with no chance left for what sampling had cut off."""
    if mask is None:
        return logits_MV
    return logits_MV.masked_fill(mask.blocks(logits_MV.shape[1], logits_MV.device), NO_CHANCE)


class _Scores(torch.autograd.Function):
    """Logits (M, V) and targets (M,) -> log-probabilities of the targets, and entropies without gradient, (M,) fp32.

    By hand, for autograd would keep and make more copies of the logits.
    """

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, targets_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        scaled_MV = logits_MV.float() / temperature
        highest_M1 = scaled_MV.amax(-1, keepdim=True)
        weights_MV = (scaled_MV - highest_M1).exp_()
        total_M1 = weights_MV.sum(-1, keepdim=True)
        normaliser_M1 = highest_M1 + total_M1.log()
        logprobs_M = (scaled_MV.gather(1, targets_M[:, None]) - normaliser_M1)[:, 0]
        entropy_M = (normaliser_M1 - weights_MV.mul_(scaled_MV).sum(-1, keepdim=True) / total_M1)[:, 0]
        ctx.save_for_backward(logits_MV, targets_M, normaliser_M1)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy_M)
        return logprobs_M, entropy_M

    @staticmethod
    def backward(ctx: Any, gradient_M: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits_MV, targets_M, normaliser_M1 = ctx.saved_tensors
        gradient_M1 = gradient_M[:, None] / ctx.temperature
        result_MV = (logits_MV.float() / ctx.temperature).sub_(normaliser_M1).exp_().mul_(-gradient_M1)
        result_MV.scatter_add_(1, targets_M[:, None], gradient_M1)
        return result_MV.to(logits_MV.dtype), None, None
