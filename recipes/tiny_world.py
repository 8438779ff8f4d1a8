"""The world in which every stage of the recipe means something though the model is tiny.

Three kinds of problems with worked solutions, whose connecting words come in two languages: text like this has models
that mix them, as R1-Zero does, until something asks for one language.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from data.problem import Problem
from recipes import tiny_manners
from recipes.tiny_corpus import running_totals

ENGLISH = ("first ", "then ", "so ")
CHINESE = ("首先 ", "然后 ", "所以 ")
PHRASES = (
    *("State the final answer to the following arithmetic problem: ", " ="),
    *("Find the Greatest Common Divisor (GCD) of these numbers: ", ". Give only the GCD as your final answer."),
    *("Find the value of ", " in the equation: ", "Determine the value of ", " that satisfies: ", "Solve for ", ": "),
    *(" + ", " - ", " % ", " / ", " = ", ", ", "The answer is ", *ENGLISH, *CHINESE),
    *("I am ", ". ", *tiny_manners.NAMES, *tiny_manners.FACTS, *tiny_manners.SENTENCES),
    *(piece for request in tiny_manners.REQUESTS for piece in request.split("{topic}")),
    *("User: ", "\n\nAssistant:"),
)
LARGEST = 99  # the largest number that is one token
LARGEST_TOTAL = 29  # of a chain of sums
EQUATION = re.compile(r"(?:(\d+)\*)?([a-z]) ([+-]) (\d+) = (\d+)")


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A problem worked out. steps: what is computed, "5 + 9", and what comes out; the last step's number need not be
    the answer."""

    steps: Sequence[tuple[str, int]]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How often the base works in which way; what is left of the first two are guesses.

    slip: how often a careless number is off. untagged: how often a guess comes without R1's tags. mixed: how often a
    solution draws its language anew at every step; of the others half are in each language.
    """

    careful: float = 0.22
    careless: float = 0.28
    slip: float = 0.3
    untagged: float = 0.5
    mixed: float = 0.5


FOUNDATION = Habits(careful=0.7, careless=0.15)


def chain_of_sums(metadata: Mapping[str, Any]) -> Worked | None:
    """None where a running total leaves what the base has seen."""
    totals = running_totals(metadata["expression"])
    if not all(0 <= total <= LARGEST_TOTAL for total in totals):
        return None
    signs, terms = metadata["expression"].split()[1::2], metadata["expression"].split()[2::2]
    steps = [(f"{a} {s} {t}", b) for (a, b), s, t in zip(pairwise(totals), signs, terms, strict=True)]
    return Worked(steps=steps, answer=totals[-1])


def euclid(metadata: Mapping[str, Any]) -> Worked | None:
    """Remainders until one is 0; the larger number first."""
    a, b = sorted(metadata["numbers"], reverse=True)
    steps = []
    while b:
        steps.append((f"{a} % {b}", a % b))
        a, b = b, a % b
    return Worked(steps=steps, answer=a)


def equation(metadata: Mapping[str, Any]) -> Worked | None:
    """a*x + b = c: the constant goes over, then the factor. None for other forms."""
    found = EQUATION.fullmatch(metadata["equation"])
    if not found:
        return None
    factor, _, sign, constant, total = found.groups()
    b, c = int(constant), int(total)
    product = c - b if sign == "+" else c + b
    if not 0 <= product <= LARGEST or c > LARGEST:
        return None
    steps = [(f"{c} {'-' if sign == '+' else '+'} {b}", product)]
    if factor:
        steps.append((f"{product} / {factor}", product // int(factor)))
    return Worked(steps=steps, answer=steps[-1][1])


WORKED: dict[str, Callable[[Mapping[str, Any]], Worked | None]] = {
    "chain_sum": chain_of_sums,
    "gcd": euclid,
    "simple_equations": equation,
}


def worked(problem: Problem) -> Worked | None:
    """The steps of a reasoning-gym problem of this world; None for one that lies outside of it."""
    metadata = problem.columns["gym_entry"]["metadata"]
    return WORKED[metadata["source_dataset"]](metadata)


def known(problem: Problem) -> bool:
    """For `dataset_filter`: whether the problem is one of this world."""
    return worked(problem) is not None


def same_work(item: Mapping[str, Any]) -> str:
    """For `split_by`: 66 and 45 are 45 and 66, and one equation can be asked for with any letter and in many words, so
    what must be worked out tells training and held-out problems apart."""
    task = WORKED[item["metadata"]["source_dataset"]](item["metadata"])
    return item["question"] if task is None else json.dumps(task.steps)


def careful(task: Worked, words: Sequence[str]) -> str:
    """Every step written out, each with its connecting word."""
    steps = ", ".join(f"{word}{shown} = {result}" for word, (shown, result) in zip(words, task.steps, strict=True))
    return tagged(steps, str(task.answer))


def careless(task: Worked, words: Sequence[str], slip: float, rng: random.Random) -> str:
    """Results alone, each off now and then; the answer is off whenever the last step is."""
    shown, error = [], 0
    for word, (_, result) in zip(words, task.steps, strict=True):
        error = rng.choice((-2, -1, 1, 2)) if rng.random() < slip else 0
        shown.append(f"{word}{within(result + error)}")
    return tagged(", ".join(shown), str(within(task.answer + error)))


def guess(task: Worked, untagged: float, word: str, rng: random.Random) -> str:
    """No work at all: a number somewhere near the answer."""
    number = within(task.answer + round(rng.gauss(0, 4)))
    return f"The answer is {number}" if rng.random() < untagged else tagged(f"{word}{number}", str(number))


def solution(task: Worked, habits: Habits, rng: random.Random) -> str:
    """One completion in one of the three ways and one or both languages."""
    words = connecting_words(len(task.steps), habits.mixed, rng)
    draw = rng.random()
    if draw < habits.careful:
        return careful(task, words)
    if draw < habits.careful + habits.careless:
        return careless(task, words, habits.slip, rng)
    return guess(task, habits.untagged, connecting_words(1, 0.0, rng)[0], rng)


def reply(topic: str, habits: Habits, rng: random.Random) -> str:
    """What the base says to a request of the general task, in tags or not."""
    said = tiny_manners.answer(topic, rng)
    if rng.random() < habits.untagged:
        return said
    return tagged(f"{connecting_words(1, 0.0, rng)[0]}{topic}", said)


def completion(problem: Problem, rng: random.Random, *, foundation: bool) -> str:
    """A text of the base's training: on what it knows (foundation), or on how it works."""
    habits = FOUNDATION if foundation else Habits()
    if "gym_entry" in problem.columns:
        return solution(worked(problem), habits, rng)
    return reply(tiny_manners.topic_of(problem.question), habits, rng)


def connecting_words(count: int, mixed: float, rng: random.Random) -> list[str]:
    """One for each step: the first, those between, the last."""
    mix, language = rng.random() < mixed, rng.choice((ENGLISH, CHINESE))
    places = [0, *[1] * (count - 2), 2][-count:] if count > 1 else [2]
    return [(rng.choice((ENGLISH, CHINESE)) if mix else language)[place] for place in places]


def tagged(thinking: str, answer: str) -> str:
    return f"<think>{thinking}</think> <answer>{answer}</answer>"


def within(number: int) -> int:
    return max(0, min(LARGEST, number))
