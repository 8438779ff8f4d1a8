"""Token losses: values by hand, and the properties the training step relies on. The oracle is in test_trl_oracle.py."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo.advantages import group_advantages
from grpo.config import AdvantageConfig, LossConfig
from grpo.losses import TokenLosses, kl_k3, kl_penalty, token_losses
from grpo.weighting import AGGREGATION, loss_weights

CONFIGS = [
    LossConfig(loss_type=loss, importance_sampling_level=level, beta=beta, use_bias_correction_kl=unbiased, **bounds)
    for (loss, bounds), level, (beta, unbiased) in itertools.product(
        (
            ("grpo", {"epsilon": 0.2}),
            ("dapo", {"epsilon": 0.2, "epsilon_high": 0.28, "delta": 1.5}),
            ("dr_grpo", {"epsilon": 10.0}),
            ("cispo", {"epsilon_high": 1.3}),
        ),
        ("token", "sequence"),
        ((0.0, False), (0.04, False), (0.04, True)),
    )
]
every_config = pytest.mark.parametrize("cfg", CONFIGS)


def batch(seed: int, rows: int = 6, length: int = 5) -> dict[str, Tensor]:
    """Random fp64 rows whose ratios leave the clip range on both sides; a row without tokens is among them."""
    generator = torch.Generator().manual_seed(seed)
    policy_BT = -3 * torch.rand(rows, length, dtype=torch.float64, generator=generator)
    noise_BT = torch.randn(2, rows, length, dtype=torch.float64, generator=generator)
    mask_BT = torch.rand(rows, length, generator=generator) < 0.7
    mask_BT[0] = False
    return {
        "policy_logprobs_BT": policy_BT,
        "old_logprobs_BT": policy_BT + 0.6 * noise_BT[0],
        "ref_logprobs_BT": policy_BT + 0.6 * noise_BT[1],
        "advantages_B": torch.randn(rows, dtype=torch.float64, generator=generator),
        "mask_BT": mask_BT,
    }


def weighted_loss(rows: dict[str, Tensor], cfg: LossConfig, update: dict[str, Tensor] | None = None) -> Tensor:
    """The loss of these rows as the training step computes it; `update` is the batch that the rows are a part of."""
    update = rows if update is None else update
    ref_BT = rows["ref_logprobs_BT"]
    losses = token_losses(**{k: v for k, v in rows.items() if k != "ref_logprobs_BT"}, cfg=cfg)
    loss_BT = losses.loss_BT
    if cfg.beta > 0:
        loss_BT = loss_BT + cfg.beta * kl_penalty(
            policy_logprobs_BT=rows["policy_logprobs_BT"],
            ref_logprobs_BT=ref_BT,
            ratio_BT=losses.ratio_BT,
            mask_BT=rows["mask_BT"],
            cfg=cfg,
        )
    weights_BT = loss_weights(
        rows["mask_BT"].double(),
        aggregation=AGGREGATION[cfg.loss_type],
        num_tokens=int(update["mask_BT"].sum()),
        num_sequences=len(update["mask_BT"]),
        max_completion_length=8,
    )
    return (loss_BT * weights_BT).sum()


def loss_and_gradient(
    rows: dict[str, Tensor], cfg: LossConfig, update: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    policy_BT = rows["policy_logprobs_BT"].clone().requires_grad_()
    loss = weighted_loss({**rows, "policy_logprobs_BT": policy_BT}, cfg, update)
    return loss.detach(), torch.autograd.grad(loss, policy_BT)[0]


def one_token(ratio: float, advantage: float, cfg: LossConfig) -> tuple[TokenLosses, float]:
    """The losses of a single token with this ratio, and the derivative with respect to its log-probability."""
    old_BT = torch.tensor([[-1.0]], dtype=torch.float64)
    policy_BT = (old_BT + math.log(ratio)).requires_grad_()
    losses = token_losses(
        policy_logprobs_BT=policy_BT,
        old_logprobs_BT=old_BT,
        advantages_B=torch.tensor([advantage], dtype=torch.float64),
        mask_BT=torch.tensor([[True]]),
        cfg=cfg,
    )
    return losses, torch.autograd.grad(losses.loss_BT.sum(), policy_BT)[0].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "low", "high"),
    [
        (1.1, 2.0, -2.2, -2.2, False, False),  # inside: d(ratio)/d(logprob) = ratio
        (1.5, 2.0, -2.56, 0.0, False, True),  # above and good: held at 1.28
        (1.5, -2.0, 3.0, 3.0, False, False),  # above and bad: pushed back
        (0.5, -2.0, 1.6, 0.0, True, False),  # below and bad: held at 0.8
        (0.5, 2.0, -1.0, -1.0, False, False),  # below and good: pulled up
        (9.0, -2.0, 8.0, 0.0, False, False),  # far above and bad: delta holds it at 4
    ],
)
def test_clipped_surrogate_by_hand(
    ratio: float, advantage: float, loss: float, gradient: float, low: bool, high: bool
) -> None:
    losses, slope = one_token(ratio, advantage, LossConfig(epsilon=0.2, epsilon_high=0.28, delta=4.0))
    assert losses.loss_BT.item() == pytest.approx(loss, abs=1e-12)
    assert slope == pytest.approx(gradient, abs=1e-12)
    assert (losses.clipped_low_BT.item(), losses.clipped_high_BT.item()) == (low, high)


@pytest.mark.parametrize(("ratio", "slope"), [(1e-6, 1e-6), (10.9, 10.9), (11.1, 0.0)])
def test_epsilon_10_of_r1_cuts_only_above_11(ratio: float, slope: float) -> None:
    """1 - 10 is below every ratio: with A > 0 only ratios above 11 lose their gradient, with A < 0 none does."""
    assert one_token(ratio, 1.0, LossConfig(epsilon=10.0))[1] == pytest.approx(-slope)
    assert one_token(ratio, -1.0, LossConfig(epsilon=10.0))[1] == pytest.approx(ratio)


@pytest.mark.parametrize(("ratio", "weight", "capped"), [(3.0, 3.0, False), (5.01, 5.0, True), (0.01, 0.01, False)])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_by_hand(ratio: float, weight: float, capped: bool, advantage: float) -> None:
    """The cap is absolute, the ratio is a constant, and every token keeps a gradient."""
    losses, slope = one_token(ratio, advantage, LossConfig(loss_type="cispo", epsilon_high=5.0))
    assert losses.loss_BT.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 1), abs=1e-12)
    assert slope == pytest.approx(-weight * advantage, abs=1e-12)
    assert (losses.clipped_low_BT.item(), losses.clipped_high_BT.item()) == (False, capped)


def test_sequence_ratio_is_the_geometric_mean_of_the_counted_tokens() -> None:
    ratios_BT = torch.tensor([[2.0, 8.0, 1e9], [3.0, 1e-9, 27.0]], dtype=torch.float64)
    losses = token_losses(
        policy_logprobs_BT=ratios_BT.log(),
        old_logprobs_BT=torch.zeros_like(ratios_BT),
        advantages_B=torch.ones(2, dtype=torch.float64),
        mask_BT=torch.tensor([[True, True, False], [True, False, True]]),
        cfg=LossConfig(importance_sampling_level="sequence"),
    )
    expected_BT = torch.tensor([[4.0] * 3, [9.0] * 3], dtype=torch.float64)
    torch.testing.assert_close(losses.ratio_BT, expected_BT, rtol=1e-12, atol=0)


def test_k3_by_hand_and_its_gradient() -> None:
    """ref / policy = 2: k3 = 2 - log 2 - 1, slope 1 - 2. DeepSeekMath's appendix has the negative slope, r - 1."""
    policy_BT = torch.tensor([[math.log(0.25), -1.0]], dtype=torch.float64, requires_grad=True)
    ref_BT = torch.tensor([[math.log(0.5), -1.0]], dtype=torch.float64)
    kl_BT = kl_k3(policy_BT, ref_BT)
    assert kl_BT.tolist()[0] == pytest.approx([1 - math.log(2), 0.0], abs=1e-15)
    assert torch.autograd.grad(kl_BT.sum(), policy_BT)[0].tolist()[0] == pytest.approx([-1.0, 0.0], abs=1e-15)


@pytest.mark.parametrize("unbiased", [False, True])
def test_only_the_corrected_kl_has_the_gradient_of_the_kl(unbiased: bool) -> None:
    """Exact expectation over a four-word vocabulary: E[d k3] is not d KL(policy || ref), E[d (ratio k3)] is."""
    torch.manual_seed(0)
    logits_V = torch.randn(4, dtype=torch.float64, requires_grad=True)
    ref_V = torch.randn(4, dtype=torch.float64).log_softmax(0)
    logprobs_V = logits_V.log_softmax(0)
    true_kl = (logprobs_V.exp() * (logprobs_V - ref_V)).sum()
    truth_V = torch.autograd.grad(true_kl, logits_V, retain_graph=True)[0]
    kl_BT = kl_penalty(  # on-policy: every word sampled with its own probability
        policy_logprobs_BT=logprobs_V.unsqueeze(0),
        ref_logprobs_BT=ref_V.unsqueeze(0),
        ratio_BT=(logprobs_V - logprobs_V.detach()).exp().unsqueeze(0),
        mask_BT=torch.ones(1, 4, dtype=torch.bool),
        cfg=LossConfig(use_bias_correction_kl=unbiased),
    )
    estimate_V = torch.autograd.grad((logprobs_V.detach().exp() * kl_BT).sum(), logits_V)[0]
    assert torch.allclose(estimate_V, truth_V, rtol=0, atol=1e-12) is unbiased


@every_config
@pytest.mark.parametrize("garbage", [0.0, 1e4, -1e4, math.inf, math.nan])
def test_masked_positions_change_nothing(cfg: LossConfig, garbage: float) -> None:
    clean = batch(1)
    dirty = {k: v.masked_fill(~clean["mask_BT"], garbage) if k.endswith("logprobs_BT") else v for k, v in clean.items()}
    dirty["policy_logprobs_BT"] = clean["policy_logprobs_BT"].masked_fill(~clean["mask_BT"], -garbage)
    dirty["advantages_B"] = clean["advantages_B"].clone()
    dirty["advantages_B"][0] = 1e6  # the row without tokens
    (loss, gradient_BT), (dirty_loss, dirty_gradient_BT) = (loss_and_gradient(b, cfg) for b in (clean, dirty))
    assert loss.equal(dirty_loss)
    assert gradient_BT.equal(dirty_gradient_BT)
    assert not gradient_BT[~clean["mask_BT"]].any() and gradient_BT.any()


@every_config
def test_sums_need_no_second_mask(cfg: LossConfig) -> None:
    """What the step adds up for the log is 0 or False outside the mask, and not everywhere inside."""
    rows = batch(4)
    ref_BT = rows.pop("ref_logprobs_BT")
    mask_BT, policy_BT = rows["mask_BT"], rows["policy_logprobs_BT"]
    rows["old_logprobs_BT"] = policy_BT - rows["advantages_B"].sign().unsqueeze(1)  # every ratio is e or 1/e: clipped
    losses = token_losses(**rows, cfg=cfg)
    kl_BT = kl_penalty(
        policy_logprobs_BT=policy_BT, ref_logprobs_BT=ref_BT, ratio_BT=losses.ratio_BT, mask_BT=mask_BT, cfg=cfg
    )
    clipped_BT = losses.clipped_low_BT | losses.clipped_high_BT
    for values_BT in (losses.loss_BT, kl_BT, losses.clipped_low_BT, losses.clipped_high_BT):
        assert not values_BT[~mask_BT].any()
    assert losses.loss_BT.any() and kl_BT.any()
    assert clipped_BT.any() or cfg.epsilon == 10.0


@every_config
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_split_does_not_change_the_gradient(cfg: LossConfig, seed: int, data: st.DataObject) -> None:
    """Rows in any order, in any parts (also empty ones): the parts' losses and gradients add up to the whole."""
    whole = batch(seed)
    part_of_row = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=6, max_size=6)))
    loss, gradient_BT = loss_and_gradient(whole, cfg)
    total, total_BT = torch.zeros_like(loss), torch.zeros_like(gradient_BT)
    for part in range(4):
        index = (part_of_row == part).nonzero().flatten()
        part_loss, part_gradient_BT = loss_and_gradient({k: v[index] for k, v in whole.items()}, cfg, whole)
        total += part_loss
        total_BT[index] += part_gradient_BT
    torch.testing.assert_close(total, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(total_BT, gradient_BT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("old_is_given", [True, False])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_on_policy_is_plain_reinforce(loss_type: str, old_is_given: bool, seed: int) -> None:
    """d loss / d logprob = -A x weight at every counted token; `None` means the same as the policy's own numbers."""
    cfg = LossConfig(loss_type=loss_type)
    rows = batch(seed)
    rows["old_logprobs_BT"] = rows["policy_logprobs_BT"].clone() if old_is_given else None
    _, gradient_BT = loss_and_gradient(rows, cfg)
    policy_BT = rows["policy_logprobs_BT"].clone().requires_grad_()
    mask_BT, advantages_B1 = rows["mask_BT"], rows["advantages_B"].unsqueeze(1)
    counts = {"num_tokens": int(mask_BT.sum()), "num_sequences": len(mask_BT), "max_completion_length": 8}
    weights_BT = loss_weights(mask_BT.double(), aggregation=AGGREGATION[loss_type], **counts)
    reinforce = -(weights_BT * advantages_B1 * policy_BT).sum()
    torch.testing.assert_close(gradient_BT, torch.autograd.grad(reinforce, policy_BT)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cfg", [c for c in CONFIGS if c.beta == 0.0])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_give_exactly_no_gradient(cfg: LossConfig, scale: str) -> None:
    """Every group agrees, on different values, off-policy: nothing moves, not even by rounding."""
    rewards_PG = torch.tensor([[0.1] * 3, [1.1] * 3], dtype=torch.float64)
    rows = batch(2)
    rows["advantages_B"] = group_advantages(rewards_PG, AdvantageConfig(scale_rewards=scale)).advantages_PG.flatten()
    assert not loss_and_gradient(rows, cfg)[1].any()


@every_config
def test_inputs_are_left_as_they_were(cfg: LossConfig) -> None:
    rows = batch(3)
    before = {k: v.clone() for k, v in rows.items()}
    loss_and_gradient(rows, cfg)
    assert all(rows[k].equal(v) for k, v in before.items())
