"""The drawing rules of one position against transformers' processors and plain arithmetic in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpo.config import SamplingConfig
from grpo.sampling import draw as module
from grpo.sampling.draw import Draw, inverse_cdf

SIZES = (1, 2, 300, 1024, 1025, 1151, 1152, 1153, 3000)


def logits_of(rows: int, vocabulary: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def uniforms_of(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def processed(logits_BV: torch.Tensor, ids: list[int], **knobs: Any) -> torch.Tensor:
    """What transformers makes of the logits after `ids`, in its own order of the rules."""
    made = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "min_completion_length": lambda length: MinNewTokensLengthLogitsProcessor(len(ids), length, [0, 3]),
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    processors = LogitsProcessorList([make(knobs[name]) for name, make in made.items() if name in knobs])
    return processors(torch.tensor([ids] * len(logits_BV)), logits_BV.clone())


RULES: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 5000},
    {"top_p": 0.95},
    {"top_p": 0.5},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_completion_length": 2},
    {"top_k": 30, "top_p": 0.9},
    {"temperature": 1.7, "top_p": 0.99, "min_p": 0.02},
    {
        "repetition_penalty": 1.4,
        "min_completion_length": 1,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
    },
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("vocabulary", [4, 130, 1000])
def test_kept_tokens_and_probabilities_are_those_of_transformers(rules: dict[str, Any], vocabulary: int) -> None:
    """Sets: equal in all of 40 rows. Log-probabilities of the drawn tokens: 2e-6."""
    logits_BV, ids = logits_of(40, vocabulary, seed=1), [2, 1, 3]
    expected_BV = processed(logits_BV, ids, **rules)
    seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool).index_fill_(1, torch.tensor(ids), True)
    drawn = Draw(SamplingConfig(**rules), eos_ids=(0, 3, 10**6))(
        logits_BV,
        uniforms_of(40),
        seen_BV=seen_BV if "repetition_penalty" in rules else None,
        short_B=torch.ones(40, dtype=torch.bool) if "min_completion_length" in rules else None,
    )
    kept_BV = torch.ones_like(seen_BV) if drawn.kept_BV is None else drawn.kept_BV
    assert kept_BV.equal(expected_BV > -math.inf)
    assert (drawn.kept_BV is None) == (rules.keys() <= {"temperature", "repetition_penalty"})
    exact_B = expected_BV.double().log_softmax(-1).gather(1, drawn.tokens_B[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs_B.double(), exact_B, rtol=0, atol=2e-6)


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("rules", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.05}], ids=str)
def test_tokens_are_the_inverse_of_the_cumulative_distribution(vocabulary: int, rules: dict[str, Any]) -> None:
    """Against numpy in double precision, in the vocabulary's order; a number within 1e-6 of a step may go both ways."""
    logits_BV, uniforms_B = logits_of(500, vocabulary, seed=2), uniforms_of(500, seed=3)
    drawn = Draw(SamplingConfig(**rules))(logits_BV, uniforms_B)
    chances_BV = processed(logits_BV, [0], **rules).double().softmax(-1).numpy()
    undecided = 0
    for chances, uniform, token in zip(chances_BV, uniforms_B.tolist(), drawn.tokens_B.tolist(), strict=True):
        cdf = chances.cumsum()
        near = np.abs(cdf - uniform * cdf[-1]).min() < 1e-6
        undecided += near
        assert near or token == np.searchsorted(cdf, uniform * cdf[-1], side="right")
    assert undecided < 50


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.sampled_from(SIZES),
    top_p=st.floats(0.01, 0.999),
    spread=st.sampled_from([0.0, 0.1, 2.0, 30.0]),
    first=st.sampled_from([1, 3, 64]),
    seed=st.integers(0, 1000),
)
def test_a_nucleus_of_any_size_by_hand(vocabulary: int, top_p: float, spread: float, first: int, seed: int) -> None:
    """The likeliest tokens until they have top_p, and those that tie with the last; whatever is looked at first."""
    logits_V = logits_of(1, vocabulary, seed, spread)[0]
    chances = logits_V.double().softmax(-1)
    ordered = chances.sort(descending=True).values
    before = ordered.cumsum(0) - ordered
    assume(((before - top_p).abs() > 1e-6).all())
    least = ordered[before < top_p][-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.nucleus_floor, "__defaults__", (first,))
        kept = Draw(SamplingConfig(top_p=top_p))(logits_V[None], torch.tensor([0.5]).double()).kept_BV
    assert kept[0].tolist() == (chances > least * (1 - 1e-9)).tolist()


def test_tokens_that_tie_are_kept_together() -> None:
    """Which of them a sort puts first may depend on the machine; low precision makes many."""
    logits_BV = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    for rules in ({"top_k": 2}, {"top_p": 0.3}, {"min_p": 1.0}):
        assert Draw(SamplingConfig(**rules))(logits_BV, uniforms_of(1)).kept_BV.tolist() == [
            [False, *[True] * 3, False]
        ]


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("uniform", [0.0, 5e-324, 0.5, 1 - 2**-53])
def test_no_number_draws_a_token_without_weight(vocabulary: int, uniform: float) -> None:
    """Weights of every magnitude, most of them 0, the ends of blocks among them; the ends of the interval draw the
    first that has a weight, and the last but for 1e-6 of the whole."""
    generator = torch.Generator().manual_seed(vocabulary)
    weights_BV = torch.rand(200, vocabulary, generator=generator).pow(20)
    weights_BV[torch.rand(weights_BV.shape, generator=generator) < 0.8] = 0.0
    weights_BV[torch.arange(200), torch.randint(vocabulary, (200,), generator=generator)] += 1e-3
    tokens_B1, whole_B1 = inverse_cdf(weights_BV, torch.full((200,), uniform, dtype=torch.float64))
    assert (weights_BV.gather(1, tokens_B1) > 0).all()
    torch.testing.assert_close(whole_B1, weights_BV.double().sum(-1, keepdim=True), rtol=1e-6, atol=0)
    if uniform < 1e-300:
        assert tokens_B1[:, 0].equal((weights_BV > 0).int().argmax(-1))
    if uniform == 1 - 2**-53:
        beyond = [row[token + 1 :].sum() for row, token in zip(weights_BV, tokens_B1[:, 0].tolist(), strict=True)]
        assert (torch.stack(beyond) <= 1e-6 * whole_B1[:, 0]).all()


def test_only_short_rows_are_kept_from_ending() -> None:
    logits_BV = torch.zeros(2, 4)
    drawn = Draw(SamplingConfig(min_completion_length=3), eos_ids=[1])(
        logits_BV, uniforms_of(2), short_B=torch.tensor([True, False])
    )
    assert drawn.kept_BV.tolist() == [[True, False, True, True], [True] * 4]
    torch.testing.assert_close(drawn.logprobs_B.exp(), torch.tensor([1 / 3, 1 / 4]))
    assert logits_BV.eq(0).all()  # the sampler's logits are not written to


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for: questions to it, and numbers of the host sent there."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        waits = (aten._local_scalar_dense, aten.nonzero, aten.lift_fresh)
        self.number += function.overloadpacket in waits
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("rules", "questions"),
    [
        ({}, 0),
        ({"top_k": 50}, 0),
        ({"min_p": 0.05}, 0),
        ({"repetition_penalty": 1.2, "temperature": 0.6}, 0),
        ({"min_completion_length": 4}, 0),
        ({"top_k": 50, "top_p": 0.95, "min_p": 0.05, "min_completion_length": 4}, 0),
        ({"top_p": 0.95}, 1),
        ({"top_k": 500, "top_p": 0.95}, 1),
    ],
    ids=str,
)
def test_a_draw_does_not_wait_for_the_device(rules: dict[str, Any], questions: int) -> None:
    """From the second draw on; but for a nucleus of more tokens than are looked at first, which is one question."""
    logits_BV, uniforms_B, draw = logits_of(8, 1000, seed=6), uniforms_of(8), Draw(SamplingConfig(**rules), [3])
    short_B = torch.arange(8) < 4 if "min_completion_length" in rules else None
    seen_BV = torch.zeros_like(logits_BV, dtype=torch.bool) if "repetition_penalty" in rules else None
    draw(logits_BV, uniforms_B, seen_BV=seen_BV, short_B=short_B)
    with Waits() as waits:
        draw(4 * logits_BV, uniforms_B, seen_BV=seen_BV, short_B=short_B)
    assert waits.number == questions


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("top_k", [1, 3, 40, 64, 65, 300])
def test_a_nucleus_among_the_top_k_by_hand(spread: float, top_k: int) -> None:
    """Many ties, beyond the k-th token too: as one sort finds it."""
    logits_BV, top_p = (logits_of(50, 400, seed=7, spread=1.0) * spread).round(decimals=1), 0.87654
    kept_BV = Draw(SamplingConfig(top_k=top_k, top_p=top_p))(logits_BV, uniforms_of(50)).kept_BV
    for logits_V, kept_V in zip(logits_BV.double(), kept_BV, strict=True):
        among_V = logits_V.masked_fill(logits_V < logits_V.sort(descending=True).values[top_k - 1], -math.inf)
        chances_V, order_V = among_V.softmax(-1).sort(descending=True)
        last = order_V[chances_V.cumsum(-1) - chances_V < top_p][-1]
        assert kept_V.equal(logits_V >= logits_V[last])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_drawn_from_in_float32(dtype: torch.dtype) -> None:
    logits_BV, uniforms_B = logits_of(50, 300, seed=5).to(dtype), uniforms_of(50)
    low, high = (Draw(SamplingConfig(top_p=0.9))(x, uniforms_B) for x in (logits_BV, logits_BV.float()))
    assert low.tokens_B.equal(high.tokens_B) and low.logprobs_B.equal(high.logprobs_B)
