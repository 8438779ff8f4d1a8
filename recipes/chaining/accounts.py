"""What the stages of a chain say of themselves: the counts of their lineage, and the tokens that they sampled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from grpo.monitor.metrics import read_metrics
from recipes.chaining.chain import Chain
from recipes.lineage import LINEAGE

SAMPLED = "tokens/sampled"


def counts(chain: Chain) -> dict[str, dict[str, float]]:
    """Stage -> rows, pairs, held-out accuracy, ...; single tasks are in the stage's own report."""
    paths = {stage.name: chain.output(stage) / LINEAGE for stage in chain.stages if stage.recipe != "evaluate"}
    return {
        name: dict(numbers(json.loads(path.read_text(encoding="utf-8"))["counts"]))
        for name, path in paths.items()
        if path.exists()
    }


def numbers(nested: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested counts, with the way to it."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and key != "tasks":
            yield from numbers(value, f"{name}{key} ")
        elif isinstance(value, int | float):
            yield f"{name}{key}", value


def sampled_tokens(chain: Chain) -> dict[str, int]:
    """Stage -> completion tokens of all its rollouts, for stages that reinforce."""
    found = {stage.name: read_metrics(chain.output(stage)) for stage in chain.stages}
    totals = {name: sum(line.get(SAMPLED) or 0 for line in lines) for name, lines in found.items()}
    return {name: round(total) for name, total in totals.items() if total}
