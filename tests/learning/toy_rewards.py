"""Rewards that a random model can learn to earn within seconds; named by path in the tests' configs."""

from __future__ import annotations

from typing import Any


def share_of_wanted(completions: list[str], wanted: list[str], **_: Any) -> list[float]:
    """How much of the text is made of digits, or of capital letters, as the problem's column `wanted` says."""
    fits = {"digits": str.isdigit, "capitals": lambda c: c.isascii() and c.isupper()}
    return [
        sum(map(fits[kind], text)) / len(text) if text else 0.0 for text, kind in zip(completions, wanted, strict=True)
    ]
