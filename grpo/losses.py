"""Per-token losses of the policy update: no reduction, no state, no logging. `weighting.py` turns them into one number.

Outside the mask losses are 0, flags False, and no gradient flows, whatever numbers stand there: padding may hold
log-probabilities whose ratio overflows, and inf x 0 would be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.config import LossConfig


@dataclass(frozen=True, kw_only=True)
class TokenLosses:
    """loss_BT: what is minimised, before the KL term. ratio_BT: policy / old; both carry gradient.

    clipped_low_BT, clipped_high_BT: True where the lower, the upper clip bound decided. With sequence-level ratios
    every counted token of a row holds the row's value.
    """

    loss_BT: Tensor
    ratio_BT: Tensor
    clipped_low_BT: Tensor
    clipped_high_BT: Tensor


def token_losses(
    *,
    policy_logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    cfg: LossConfig,
) -> TokenLosses:
    """The policy-gradient loss of every token: clipped surrogate, or CISPO where `cfg.loss_type` says so.

    mask_BT: bool, True where the token counts. old_logprobs_BT None: the policy itself sampled the batch; the ratio is
    1 and its gradient is that of the log-probability.
    """
    policy_BT = policy_logprobs_BT.masked_fill(~mask_BT, 0.0)
    old_BT = policy_BT.detach() if old_logprobs_BT is None else old_logprobs_BT.masked_fill(~mask_BT, 0.0)
    ratio_BT = _ratio(policy_BT - old_BT, mask_BT, cfg.importance_sampling_level)
    advantages_BT = advantages_B.unsqueeze(1).expand_as(ratio_BT)
    if cfg.loss_type == "cispo":
        loss_BT, low_BT, high_BT = _cispo(policy_BT, ratio_BT, advantages_BT, cfg)
    else:
        loss_BT, low_BT, high_BT = _clipped_surrogate(ratio_BT, advantages_BT, cfg)
    return TokenLosses(
        loss_BT=loss_BT.masked_fill(~mask_BT, 0.0),
        ratio_BT=ratio_BT,
        clipped_low_BT=low_BT & mask_BT,
        clipped_high_BT=high_BT & mask_BT,
    )


def kl_k3(policy_logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """Estimate of KL(policy || ref) per token, never negative: r - log r - 1 with r = ref / policy.

    DeepSeekMath (arXiv 2402.03300) eq. 4. Carries gradient to the policy.
    """
    log_r_BT = ref_logprobs_BT - policy_logprobs_BT
    return log_r_BT.exp() - log_r_BT - 1


def kl_penalty(
    *, policy_logprobs_BT: Tensor, ref_logprobs_BT: Tensor, ratio_BT: Tensor, mask_BT: Tensor, cfg: LossConfig
) -> Tensor:
    """The KL term of every token, before the factor `beta`; 0 outside the mask.

    With `cfg.use_bias_correction_kl` it is DeepSeek-V3.2's (arXiv 2512.02556, section 3.1): k3 times policy / old.
    `ratio_BT` (of `TokenLosses`) then keeps its gradient, as in TRL 1.16: only so is the *gradient* unbiased, and it
    differs from plain k3 even on-policy, where the ratio's value is 1.
    """
    kl_BT = kl_k3(policy_logprobs_BT.masked_fill(~mask_BT, 0.0), ref_logprobs_BT.masked_fill(~mask_BT, 0.0))
    return kl_BT * ratio_BT if cfg.use_bias_correction_kl else kl_BT


def _ratio(log_ratio_BT: Tensor, mask_BT: Tensor, level: str) -> Tensor:
    """policy / old of every token, or, GSPO (arXiv 2507.18071), the geometric mean over the row's tokens.

    `log_ratio_BT` is 0 outside the mask.
    """
    if level == "token":
        return log_ratio_BT.exp()
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    ratio_B1 = (log_ratio_BT.sum(dim=1, keepdim=True) / lengths_B1).exp()
    return ratio_B1.expand_as(log_ratio_BT)


def _clipped_surrogate(ratio_BT: Tensor, advantages_BT: Tensor, cfg: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's pessimistic surrogate, DeepSeekMath eq. 3, with DAPO's separate upper bound (arXiv 2503.14476).

    `delta` bounds the unclipped side as well (INTELLECT-2, arXiv 2505.07291): without it a token with A < 0 and an
    enormous ratio has an enormous gradient. The flags are those of the PPO clip alone, as TRL counts them.
    """
    lowest = 1 - cfg.epsilon
    highest = 1 + (cfg.epsilon if cfg.epsilon_high is None else cfg.epsilon_high)
    free_BT = ratio_BT if cfg.delta is None else ratio_BT.clamp(max=cfg.delta)
    clipped_BT = ratio_BT.clamp(lowest, highest)
    loss_BT = -torch.minimum(free_BT * advantages_BT, clipped_BT * advantages_BT)
    return loss_BT, (ratio_BT < lowest) & (advantages_BT < 0), (ratio_BT > highest) & (advantages_BT > 0)


def _cispo(
    policy_BT: Tensor, ratio_BT: Tensor, advantages_BT: Tensor, cfg: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """REINFORCE weighted by the capped ratio (MiniMax-M1, arXiv 2506.13585): no token loses its gradient.

    The cap is `epsilon_high` itself, not 1 + epsilon_high, as in TRL and ScaleRL. It binds for both signs of A.
    """
    cap = cfg.epsilon if cfg.epsilon_high is None else cfg.epsilon_high
    loss_BT = -ratio_BT.detach().clamp(max=cap) * advantages_BT * policy_BT
    return loss_BT, torch.zeros_like(ratio_BT, dtype=torch.bool), ratio_BT > cap
