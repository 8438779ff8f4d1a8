"""What the loop asks of a sampling engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from data.problem import Problem
from grpo.types import RolloutGroup


class Sampler(Protocol):
    """Turns problems into groups of completions under the policy's live weights."""

    def sample(self, problems: Sequence[Problem], *, positions: Sequence[int], round_key: int) -> list[RolloutGroup]:
        """One group per problem, in order. `positions` are the problems' numbers in the whole round (0 .. P - 1 over
        all processes) and `round_key` names the round; together with the seed and the sibling's number they fix the
        random stream of every completion."""
        ...


def uniform_streams(
    seed: int, round_key: int, positions: Sequence[int], num_siblings: int, num_tokens: int
) -> np.ndarray:
    """Random numbers in [0, 1) for every completion, float64 of shape (len(positions) * num_siblings, num_tokens).

    Each row is a counter-based stream (Philox) of (seed, round, position, sibling) alone, so a completion's draws do
    not depend on the batch, the process or the order in which rows are sampled.
    """
    keys = ((seed, round_key, position, sibling) for position in positions for sibling in range(num_siblings))
    rows = [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(num_tokens) for key in keys]
    return np.array(rows).reshape(-1, num_tokens)  # a process may have no problem at all
