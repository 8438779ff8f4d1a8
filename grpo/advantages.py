"""Rewards of a group of completions -> advantages. Pure tensors in, pure tensors out.

GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1): A_i = (r_i - mean(r)) / std(r) inside the group of one problem.
Dr. GRPO (2503.20783) and DeepSeek-V3.2 (2512.02556) leave the division out; RLOO (2402.14740) takes the mean of the
*other* rows as baseline; ScaleRL (2510.13786) divides by the std of the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.config import AdvantageConfig

# The paper names no guard against a tiny std. This is TRL's; rewards are of order 1, so it costs about 1e-4 relative.
STD_GUARD = 1e-4


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """Advantages of one rollout and the group-level facts that are logged beside them.

    advantages_PG: dtype of the rewards; exactly 0 where `counts_PG` is False and where the whole group agrees.
    counts_PG: True where the row takes part in the loss: its reward is valid and so is that of at least one sibling.
    no_signal_P: True where two or more rewards are valid and all of them are equal. dropped_P: True where fewer than
    two are valid. No group is both.
    """

    advantages_PG: Tensor
    counts_PG: Tensor
    no_signal_P: Tensor
    dropped_P: Tensor


def group_advantages(rewards_PG: Tensor, cfg: AdvantageConfig) -> Advantages:
    """Centre every reward on its group's baseline and divide by the std that `cfg.scale_rewards` names.

    rewards_PG: float, the rewards of the *whole* rollout (all processes), NaN = masked row. A masked row enters no
    mean and no std. Both stds are Bessel-corrected over raw valid rewards, plus `STD_GUARD`, as in TRL 1.16; the
    batch std includes the rows of dropped groups.
    """
    valid_PG = ~rewards_PG.isnan()
    num_valid_P1 = valid_PG.sum(dim=1, keepdim=True)
    dropped_P = num_valid_P1.squeeze(1) < 2
    no_signal_P = ~dropped_P & _all_equal(rewards_PG, valid_PG)

    advantages_PG = rewards_PG - rewards_PG.nanmean(dim=1, keepdim=True)
    if cfg.advantage_baseline == "leave_one_out":
        advantages_PG = advantages_PG * num_valid_P1 / (num_valid_P1 - 1)  # = r_i - mean of the others
    if cfg.scale_rewards != "none":
        advantages_PG = advantages_PG / (_std(rewards_PG, cfg.scale_rewards) + STD_GUARD)

    # Rounding puts the mean of equal rewards beside them (0.1, 0.1, 0.1 in fp32), and the guard would then magnify
    # that error by 10,000: a group without signal is set to 0, not computed to be near it.
    counts_PG = valid_PG & ~dropped_P.unsqueeze(1)
    signal_PG = counts_PG & ~no_signal_P.unsqueeze(1)
    return Advantages(
        advantages_PG=advantages_PG.where(signal_PG, 0.0),
        counts_PG=counts_PG,
        no_signal_P=no_signal_P,
        dropped_P=dropped_P,
    )


def _all_equal(rewards_PG: Tensor, valid_PG: Tensor) -> Tensor:
    lowest_P = rewards_PG.masked_fill(~valid_PG, torch.inf).amin(dim=1)
    highest_P = rewards_PG.masked_fill(~valid_PG, -torch.inf).amax(dim=1)
    return lowest_P == highest_P


def _std(rewards_PG: Tensor, scope: str) -> Tensor:
    """Bessel-corrected std over the valid rows of each group (P, 1) or of the batch (1, 1); NaN for a single row."""
    dims = (1,) if scope == "group" else (0, 1)
    centred_PG = rewards_PG - rewards_PG.nanmean(dim=dims, keepdim=True)
    num_valid = (~rewards_PG.isnan()).sum(dim=dims, keepdim=True)
    return (centred_PG.square().nansum(dim=dims, keepdim=True) / (num_valid - 1)).sqrt()
