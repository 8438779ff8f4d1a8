"""The text of the tiny base: careful work is right, careless work stays in range, and all of it are whole tokens."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.gym import load_gym, running_totals_below_30
from grpo.policy.tiny_v3 import build_tokenizer
from recipes.tiny_corpus import (
    LARGEST_TOTAL,
    PHRASES,
    Mixture,
    careful_solution,
    careless_solution,
    guess,
    solution,
)
from rewards.format import is_well_formed
from rewards.math.extract import extract_answer

TOKENIZER = build_tokenizer(PHRASES)
MARKS = {"bare": "The answer is", "tagged": "it is", "careful": "=", "sums": ","}
STEP = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")


def signed_terms(expression: str) -> list[int]:
    return [int(term) for term in re.findall(r"[+-]?\d+", expression.replace(" ", ""))]


@st.composite
def chains(draw: st.DrawFn) -> str:
    """Three to five one-digit terms whose running totals stay within 0..29, written as chain_sum writes them."""
    total = draw(st.integers(1, 9))
    words = [str(total)]
    for _ in range(draw(st.integers(2, 4))):
        term = draw(st.integers(1, 9))
        signs = [s for s, t in (("+", total + term), ("-", total - term)) if 0 <= t <= LARGEST_TOTAL]
        if not signs:
            continue
        sign = draw(st.sampled_from(signs))
        total += term if sign == "+" else -term
        words += [sign, str(term)]
    return " ".join(words)


@given(expression=chains())
def test_careful_work_is_right_step_by_step(expression: str) -> None:
    text = careful_solution(expression)
    steps = [(int(a), s, int(t), int(b)) for a, s, t, b in STEP.findall(text)]
    terms = signed_terms(expression)
    assert is_well_formed(text) and len(steps) == len(terms) - 1
    assert [t if s == "+" else -t for _, s, t, _ in steps] == terms[1:]
    assert [a for a, *_ in steps] == [terms[0], *(b for *_, b in steps)][: len(steps)]
    assert all(b == (a + t if s == "+" else a - t) for a, s, t, b in steps)
    assert extract_answer(text) == str(sum(terms))


@given(expression=chains(), seed=st.integers(0, 2**32))
def test_careless_work_shows_running_totals_in_range_and_answers_with_the_last(expression: str, seed: int) -> None:
    text = careless_solution(expression, random.Random(seed), slip=0.3)
    shown = [int(number) for number in re.findall(r"\d+", text.partition("</think>")[0])]
    assert is_well_formed(text) and extract_answer(text) == str(shown[-1])
    assert len(shown) == len(signed_terms(expression)) - 1
    assert all(0 <= total <= LARGEST_TOTAL for total in shown)


@given(expression=chains(), seed=st.integers(0, 2**32))
def test_without_slips_careless_work_is_right_and_an_error_is_carried_on(expression: str, seed: int) -> None:
    terms = signed_terms(expression)
    totals = [sum(terms[: n + 1]) for n in range(1, len(terms))]
    assert f"<think>{', '.join(map(str, totals))}</think>" in careless_solution(expression, random.Random(seed), slip=0)

    class OneSlip(random.Random):
        calls = 0

        def random(self) -> float:
            self.calls += 1
            return 0.0 if self.calls == 1 else 1.0

        def choice(self, options: tuple[int, ...]) -> int:
            return options[-1]

    slipped = careless_solution(expression, OneSlip(), slip=0.5)
    off = [min(LARGEST_TOTAL, total + 2) for total in totals]
    assert f"<think>{', '.join(map(str, off))}</think>" in slipped


@given(expression=chains(), seed=st.integers(0, 2**32))
def test_guesses_stay_in_range_with_or_without_tags(expression: str, seed: int) -> None:
    bare, tagged = (guess(expression, random.Random(seed), untagged=share) for share in (1.0, 0.0))
    assert re.fullmatch(r"The answer is \d+", bare) and not is_well_formed(bare)
    assert is_well_formed(tagged)
    assert 0 <= int(extract_answer(tagged)) <= LARGEST_TOTAL


def test_the_three_ways_come_in_the_shares_that_the_mixture_states() -> None:
    mixture, rng = Mixture(careful=0.2, careless=0.3, untagged=0.5), random.Random(0)
    draws = 4000
    kinds: Counter[str] = Counter()
    for _ in range(draws):
        text = solution("5 + 9 - 7", mixture, rng)
        kind = (
            "bare" if text.startswith("The") else "tagged" if "it is" in text else "careful" if "=" in text else "sums"
        )
        kinds[kind] += 1
    for kind, share in {"careful": 0.2, "sums": 0.3, "bare": 0.25, "tagged": 0.25}.items():
        assert kinds[kind] / draws == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)


@given(expression=chains(), seed=st.integers(0, 2**32), careful=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_text_is_whole_tokens_and_comes_back(expression: str, seed: int, careful: float) -> None:
    text = solution(expression, Mixture(careful=careful, careless=(1 - careful) / 2), random.Random(seed))
    tokens = TOKENIZER.tokenize(text)
    assert not [token for token in tokens if token.startswith("<0x") or token == TOKENIZER.unk_token]
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text
    if "=" in text:  # five tokens for each written step, a comma between two, and the frame of tags
        assert len(tokens) == 6 * (len(signed_terms(expression)) - 1) - 1 + 6


@pytest.mark.parametrize("split", ["train", "test"])
def test_careful_work_ends_in_reasoning_gyms_own_answer(split: str) -> None:
    settings = {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}
    problems = load_gym("chain_sum", split=split, size=400, seed=1, **settings).problems
    kept = [problem for problem in problems if running_totals_below_30(problem)]
    assert len(kept) > 20
    for problem in kept:
        text = careful_solution(problem.columns["gym_entry"]["metadata"]["expression"])
        assert extract_answer(text) == problem.answer
        assert not [token for token in TOKENIZER.tokenize(problem.question) if token.startswith("<0x")]
