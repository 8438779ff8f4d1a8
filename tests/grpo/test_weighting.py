"""Loss weights against the textbook formulas, and what they promise: a split never changes the gradient."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.config import LossConfig
from grpo.weighting import AGGREGATION, Aggregation, loss_weights

AGGREGATIONS = get_args(Aggregation)
BUDGET = 10  # max_completion_length


def weights(mask_BT: torch.Tensor, aggregation: Aggregation, whole_BT: torch.Tensor | None = None) -> torch.Tensor:
    """Weights in fp64 of the rows `mask_BT` of the update `whole_BT`."""
    whole_BT = mask_BT if whole_BT is None else whole_BT
    counts = {"num_tokens": int(whole_BT.sum()), "num_sequences": len(whole_BT), "max_completion_length": BUDGET}
    return loss_weights(mask_BT.double(), aggregation=aggregation, **counts)


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    rows, length = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    cells = draw(st.lists(st.booleans(), min_size=rows * length, max_size=rows * length))
    return torch.tensor(cells).view(rows, length)


def test_by_hand() -> None:
    mask_BT = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])
    assert weights(mask_BT, "token_mean").tolist() == [[0.25, 0.25, 0.25, 0], [0, 0.25, 0, 0], [0] * 4]
    ninth, third = 1 / 9, 1 / 3  # three sequences: the empty one stays in the denominator
    assert weights(mask_BT, "sequence_mean").tolist() == [[ninth, ninth, ninth, 0], [0, third, 0, 0], [0] * 4]
    assert weights(mask_BT, "fixed_length").tolist() == (mask_BT.double() / 30).tolist()


@settings(deadline=None)
@given(mask_BT=masks(), seed=st.integers(0, 1000))
def test_equal_the_textbook_reductions(mask_BT: torch.Tensor, seed: int) -> None:
    loss_BT = torch.randn(mask_BT.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = [row[keep] for row, keep in zip(loss_BT, mask_BT, strict=True)]
    tokens = torch.cat(rows)
    expected = {
        "token_mean": tokens.sum() / max(len(tokens), 1),
        "sequence_mean": sum(row.mean() if len(row) else row.sum() for row in rows) / len(rows),
        "fixed_length": tokens.sum() / (len(rows) * BUDGET),
    }
    for name in AGGREGATIONS:
        torch.testing.assert_close((loss_BT * weights(mask_BT, name)).sum(), expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(deadline=None)
@given(mask_BT=masks(), data=st.data())
def test_weights_of_a_part_are_the_part_of_the_weights(
    aggregation: Aggregation, mask_BT: torch.Tensor, data: st.DataObject
) -> None:
    """Any rows, in any order, in any number of parts: what a row weighs depends on the update alone."""
    order = data.draw(st.permutations(range(len(mask_BT))))
    cut = data.draw(st.integers(0, len(order)))
    parts = [weights(mask_BT[list(part)], aggregation, mask_BT) for part in (order[:cut], order[cut:])]
    assert torch.cat(parts).equal(weights(mask_BT, aggregation)[list(order)])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_columns_and_an_empty_update_weigh_nothing(aggregation: Aggregation) -> None:
    mask_BT = torch.tensor([[True, True], [True, False]])
    padded_BT = torch.nn.functional.pad(mask_BT, (0, 3))
    assert weights(padded_BT, aggregation)[:, :2].equal(weights(mask_BT, aggregation))
    nothing_BT = torch.zeros(2, 3, dtype=torch.bool)
    assert weights(nothing_BT, aggregation).equal(torch.zeros(2, 3, dtype=torch.float64))


def test_a_bool_mask_gives_floats() -> None:
    mask_BT = torch.tensor([[True, False]])
    out_BT = loss_weights(mask_BT, aggregation="token_mean", num_tokens=4, num_sequences=1, max_completion_length=2)
    assert out_BT.dtype == torch.float32 and out_BT.tolist() == [[0.25, 0]]


def test_every_loss_type_has_its_aggregation() -> None:
    assert set(AGGREGATION) == set(get_args(get_type_hints(LossConfig)["loss_type"]))
    assert set(AGGREGATION.values()) == set(AGGREGATIONS)
