"""What a reward function may return, and the words for what happened to one answer."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, SupportsIndex

from data.problem import ToolkitError


class RewardError(ToolkitError, RuntimeError):
    """A reward function that raised, or returned something that is not one finite number (or None) per completion."""


class Verdict(StrEnum):
    """What became of one answer. `timeout` depends on the wall clock, so a run that saw one is not bit-reproducible."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"
    ERROR = "error"
    SKIPPED = "skipped"

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type[Verdict], tuple[str]]:
        """By value in every version: Python 3.11.0 to 3.11.3 go by `getattr`, which no worker's answer may name."""
        return type(self), (self.value,)


# How far an answer came: the verdicts that mean that it passed the stage, and with it those before.
FUNNEL = {
    "extracted": {Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT},
    "parsed": {Verdict.CORRECT, Verdict.WRONG},
    "equivalent": {Verdict.CORRECT},
}


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The full form of a reward; a bare float or None is accepted wherever this is.

    `score` drives the gradient (None: does not apply to this row), `correct` drives pass@k and filtering,
    `verdict` and `reason` are counted and shown. A verdict of `error` masks the whole row out of its group.
    """

    score: float | None
    correct: bool | None = None
    verdict: Verdict | None = None
    reason: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.score is not None and not math.isfinite(self.score):
            raise RewardError(f"a reward must be finite or None, got {self.score}")


RewardValue = float | None | Reward
Failure = Literal["timeout", "memory", "crash", "error", "infra"]  # of a call; see rewards.service.Outcome

TOLD = 500  # characters of an exception's text
PATIENCE = 0.5  # seconds for it


def failed(failure: Failure, reason: str, *, floor: float, correct: bool | None = False) -> Reward:
    """What a failed call is worth. What the answer can cause costs it the score, so that nothing is gained by causing
    it; what it cannot cause masks the row."""
    reason = f"{failure}: {reason}"
    if failure in ("error", "infra"):
        return Reward(score=None, verdict=Verdict.ERROR, reason=reason)
    verdict = Verdict.TIMEOUT if failure == "timeout" else Verdict.WRONG
    return Reward(score=floor, correct=correct, verdict=verdict, reason=reason)


def describe(error: BaseException) -> str:
    """The exception's type and, where it can be printed, its text."""
    text = in_time(lambda: str(error))
    return f"{type(error).__name__}: {text[:TOLD]}" if text else type(error).__name__


def in_time(tell: Callable[[], str]) -> str:
    """What `tell` says of an exception; "" where that raises or does not end: such exceptions exist."""
    told: list[str] = []

    def ask() -> None:
        try:
            told.append(tell())
        except BaseException:
            told.append("")

    thread = threading.Thread(target=ask, daemon=True)  # left behind if it does not end
    thread.start()
    thread.join(PATIENCE)
    return told[0] if told else ""
