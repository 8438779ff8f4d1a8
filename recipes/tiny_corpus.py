"""The text the tiny base model grows up on: worked sums, careless sums, and bare guesses at the answer.

A model trained on this mixture *can* reason, because some of its text does, but mostly does not, because most of its
text does not. Reinforcement learning then has something to find: that writing the steps out pays.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PHRASES = (
    "State the final answer to the following arithmetic problem: ",
    " =",
    " + ",
    " - ",
    " = ",
    ", ",
    "it is ",
    "The answer is ",
)
LARGEST_TOTAL = 29


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Shares of the three ways of working; what is left over are bare guesses. `slip` is how often a careless
    running total is off, `untagged` how often a guess comes without R1's tags."""

    careful: float = 0.22
    careless: float = 0.28
    slip: float = 0.3
    untagged: float = 0.5


def running_totals(expression: str) -> list[int]:
    """All totals of a chain such as "3 + 5 - 2", first term included: [3, 8, 6]."""
    first, *rest = expression.split()
    totals = [int(first)]
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        totals.append(totals[-1] + (int(term) if sign == "+" else -int(term)))
    return totals


def careful_solution(expression: str) -> str:
    """Every step written out: what a person would show."""
    totals = running_totals(expression)
    signs, terms = expression.split()[1::2], expression.split()[2::2]
    steps = [f"{a} {s} {t} = {b}" for a, s, t, b in zip(totals, signs, terms, totals[1:], strict=False)]
    return f"<think>{', '.join(steps)}</think> <answer>{totals[-1]}</answer>"


def careless_solution(expression: str, rng: random.Random, slip: float) -> str:
    """Running totals only, each one off now and then, the error carried on."""
    totals = running_totals(expression)
    error, shown = 0, []
    for total in totals[1:]:
        error += rng.choice((-2, -1, 1, 2)) if rng.random() < slip else 0
        shown.append(max(0, min(LARGEST_TOTAL, total + error)))
    return f"<think>{', '.join(map(str, shown))}</think> <answer>{shown[-1]}</answer>"


def guess(expression: str, rng: random.Random, untagged: float) -> str:
    """No work at all: a number somewhere near the answer."""
    near = running_totals(expression)[-1] + round(rng.gauss(0, 4))
    number = max(0, min(LARGEST_TOTAL, near))
    if rng.random() < untagged:
        return f"The answer is {number}"
    return f"<think>it is {number}</think> <answer>{number}</answer>"


def solution(expression: str, mixture: Mixture, rng: random.Random) -> str:
    """One completion for the sum, in one of the three ways."""
    draw = rng.random()
    if draw < mixture.careful:
        return careful_solution(expression)
    if draw < mixture.careful + mixture.careless:
        return careless_solution(expression, rng, mixture.slip)
    return guess(expression, rng, mixture.untagged)
