"""Advantages against numbers worked out by hand and against a slow twin in plain Python."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.advantages import STD_GUARD, group_advantages
from grpo.config import AdvantageConfig

NAN = math.nan
CONFIGS = [
    AdvantageConfig(scale_rewards=scale, advantage_baseline=baseline)
    for scale, baseline in itertools.product(("group", "batch", "none"), ("mean", "leave_one_out"))
]
rewards = st.one_of(st.just(NAN), st.sampled_from([0.0, 0.1, 1.0, 1.1]), st.floats(-3, 3, allow_subnormal=False))
groups = st.integers(1, 5).flatmap(
    lambda g: st.lists(st.lists(rewards, min_size=g, max_size=g), min_size=1, max_size=4)
)


def advantages(rows: list[list[float]], **knobs: str) -> list[list[float]]:
    return group_advantages(torch.tensor(rows, dtype=torch.float64), AdvantageConfig(**knobs)).advantages_PG.tolist()


def slow_twin(rows: list[list[float]], cfg: AdvantageConfig) -> list[list[float]]:
    """The same definition, a row at a time, with Python's own statistics."""
    batch = [r for row in rows for r in row if not math.isnan(r)]
    out = []
    for row in rows:
        valid = [r for r in row if not math.isnan(r)]
        if len(set(valid)) < 2:
            out.append([0.0] * len(row))
            continue
        scale = {"group": valid, "batch": batch, "none": None}[cfg.scale_rewards]
        divisor = 1.0 if scale is None else statistics.stdev(scale) + STD_GUARD
        values = []
        for i, r in enumerate(row):
            others = [
                x for j, x in enumerate(row) if not math.isnan(x) and (j != i or cfg.advantage_baseline == "mean")
            ]
            values.append(0.0 if math.isnan(r) else (r - statistics.fmean(others)) / divisor)
        out.append(values)
    return out


def test_group_std_by_hand() -> None:
    # mean 1/4; squared deviations 9/16 + 3/16 = 3/4; Bessel: 3/4 / 3 = 1/4; std 1/2
    expected = [0.75 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001, -0.25 / 0.5001]
    assert advantages([[1, 0, 0, 0]])[0] == pytest.approx(expected, abs=1e-15)


def test_batch_std_by_hand() -> None:
    # rewards 1 0 2 2: mean 5/4, squared deviations (1 + 25 + 9 + 9)/16 = 11/4, Bessel 11/12; the second group agrees
    std = math.sqrt(11 / 12)
    expected = [[0.5 / (std + 1e-4), -0.5 / (std + 1e-4)], [0, 0]]
    assert advantages([[1, 0], [2, 2]], scale_rewards="batch") == [pytest.approx(row, abs=1e-15) for row in expected]


def test_mean_only_and_leave_one_out_by_hand() -> None:
    assert advantages([[1, 0, 0, 0]], scale_rewards="none") == [[0.75, -0.25, -0.25, -0.25]]
    loo = advantages([[3, 0, 0, 0]], scale_rewards="none", advantage_baseline="leave_one_out")
    assert loo[0] == pytest.approx([3, -1, -1, -1], abs=1e-15)


def test_masked_rows_by_hand() -> None:
    """The masked row is neither a zero in the mean nor a row in the std: 4, 2 have mean 3 and std sqrt(2)."""
    result = group_advantages(torch.tensor([[4, NAN, 2], [NAN, 7, NAN], [NAN, NAN, NAN]]).double(), AdvantageConfig())
    a = 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(
        result.advantages_PG[0], torch.tensor([a, 0, -a], dtype=torch.float64), rtol=0, atol=1e-15
    )
    assert result.advantages_PG[1:].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert result.counts_PG.tolist() == [[True, False, True], [False] * 3, [False] * 3]
    assert result.dropped_P.tolist() == [False, True, True]
    assert result.no_signal_P.tolist() == [False, False, False]


def test_a_group_that_agrees_counts_but_has_no_signal() -> None:
    result = group_advantages(torch.tensor([[1.0, NAN, 1.0], [1.0, 0.0, 1.0]]), AdvantageConfig())
    assert result.no_signal_P.tolist() == [True, False]
    assert result.dropped_P.tolist() == [False, False]
    assert result.counts_PG.tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cfg", CONFIGS)
def test_equal_rewards_give_exactly_zero(cfg: AdvantageConfig, dtype: torch.dtype) -> None:
    """Also where the mean of equal numbers is not that number: in fp32 the mean of seven times 0.1 is off by an ulp."""
    values = torch.tensor([0.1, 1.1, 0.3, -7.7, 0.0], dtype=dtype)
    for size in range(2, 20):
        rewards_PG = values.unsqueeze(1).repeat(1, size)
        assert not group_advantages(rewards_PG, cfg).advantages_PG.any()


def test_the_zero_above_is_not_for_free() -> None:
    """Without the explicit zero the guard magnifies the rounding error of the mean to something that trains."""
    rewards_PG = torch.full((1, 7), 0.1)
    naive_PG = (rewards_PG - rewards_PG.mean(1)) / (rewards_PG.std(1) + STD_GUARD)
    assert naive_PG.abs().max() > 1e-5


@pytest.mark.parametrize("cfg", CONFIGS)
@settings(deadline=None)
@given(rows=groups)
def test_equals_the_slow_twin(cfg: AdvantageConfig, rows: list[list[float]]) -> None:
    rewards_PG = torch.tensor(rows, dtype=torch.float64)
    before = rewards_PG.clone()
    result = group_advantages(rewards_PG, cfg)
    expected = torch.tensor(slow_twin(rows, cfg), dtype=torch.float64)
    torch.testing.assert_close(result.advantages_PG, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rewards_PG, before, rtol=0, atol=0, equal_nan=True)
    assert not result.advantages_PG[~result.counts_PG].any()


@pytest.mark.parametrize("cfg", CONFIGS)
@settings(deadline=None)
@given(row=st.lists(rewards, min_size=2, max_size=8))
def test_equals_the_group_without_its_masked_rows(cfg: AdvantageConfig, row: list[float]) -> None:
    valid = [r for r in row if not math.isnan(r)]
    full = group_advantages(torch.tensor([row], dtype=torch.float64), cfg)
    if len(valid) < 2:
        assert full.dropped_P.all() and not full.advantages_PG.any()
        return
    alone = group_advantages(torch.tensor([valid], dtype=torch.float64), cfg)
    torch.testing.assert_close(full.advantages_PG[full.counts_PG], alone.advantages_PG[0], rtol=1e-9, atol=1e-9)
    assert full.no_signal_P.equal(alone.no_signal_P)
