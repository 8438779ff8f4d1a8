"""What a reward function may return, checked: exactly one usable value per completion."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from rewards.reward import Reward, RewardError, Verdict

FLOAT32_MAX = 3.4028234663852886e38


def as_rewards(returned: Any, rows: int, where: str) -> list[Reward]:
    """`returned` as one Reward per row, with float (or None) scores.

    Accepted: a list, a tuple or a 1-D array with `.tolist()`, holding None, Reward, or any real number (bool, int,
    float, Decimal, Fraction, numpy scalar, 0-d tensor). `where` names the function and the step.
    Raises RewardError for any other container, a wrong length, and any value that is not finite in float32.
    """
    values = _as_list(returned)
    if values is None:
        wanted = f"a list with one number or None for each of the {rows} completions"
        raise RewardError(f"{where} returned {_describe(returned)} instead of {wanted}")
    if len(values) != rows:
        noun = "completion" if rows == 1 else "completions"
        raise RewardError(f"{where} returned {len(values)} rewards for {rows} {noun}: give exactly one for each")
    rewards, faults = [], []
    for row, value in enumerate(values):
        try:
            rewards.append(_as_reward(value))
        except (TypeError, ValueError, OverflowError) as error:
            faults.append((row, str(error)))
    if faults:
        raise RewardError(f"{where} returned {faults[0][1]} for {_name_rows([row for row, _ in faults])}")
    return rewards


def _as_list(returned: Any) -> list[Any] | None:
    if not isinstance(returned, list | tuple) and hasattr(returned, "tolist"):
        returned = returned.tolist()
    return list(returned) if isinstance(returned, list | tuple) else None


def _as_reward(value: Any) -> Reward:
    if not isinstance(value, Reward):
        return Reward(score=_as_score(value))
    verdict = None if value.verdict is None else Verdict(value.verdict)
    return replace(value, score=_as_score(value.score), verdict=verdict)


def _as_score(value: Any) -> float | None:
    if value is None:
        return None
    if getattr(value, "shape", None) == ():  # a numpy scalar or a 0-d tensor
        value = value.item()
    if not isinstance(value, numbers.Real | Decimal):
        raise TypeError(f"{_describe(value)} (allowed: a number, None or a Reward)")
    try:
        score = float(value)
    except (OverflowError, ValueError):
        score = math.nan
    if math.isnan(score):
        raise ValueError(f"{_describe(value)} (a reward is finite; None is the word for 'does not apply')")
    if abs(score) > FLOAT32_MAX:
        raise OverflowError(f"{_describe(value)} (a reward is finite in float32)")
    return score


def _describe(value: Any) -> str:
    if isinstance(value, numbers.Number):
        return repr(value)[:40]
    return f"a {type(value).__name__}" if value is not None else "None"


def _name_rows(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    return f"rows {', '.join(map(str, rows[:8]))}{more}"
