"""The pipeline's tables: a row is the model of a stage, a column what its evaluations say, over all seeds.

Every model is asked the same problems with the same seed, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo.errors import ConfigError
from grpo.intervals import bootstrap
from grpo.monitor.samples import Result, figure, headline, read_results

Evaluations = Sequence[Mapping[str, Sequence[Result]]]  # seed by seed: benchmark -> results


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure (`pass@1`, `cons@16`, `format_rate`, `reward/<name>`, ...) over the problems of these benchmarks."""

    figure: str
    benchmarks: list[str]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What should come out, stated beforehand: in a column `better` exceeds `worse` (None: zero) by more than `margin`,
    with 95 % confidence over problems."""

    better: str
    column: str
    worse: str | None = None
    margin: float = 0.0

    def __str__(self) -> str:
        if self.worse is None:
            return f"{self.better}: {self.column} above {self.margin:g}"
        return f"{self.better} over {self.worse}: {self.column} by more than {self.margin:g}"


def evaluations(folders: Sequence[Path]) -> Evaluations:
    """One model's, from its evaluation folders, one a seed."""
    return [read_results(folder) for folder in folders]


def every_column(of_model: Evaluations) -> dict[str, Column]:
    """What a table shows unless its columns are chosen: `<benchmark> <figure>` for all there are."""
    return {
        f"{benchmark} {name}": Column(figure=name, benchmarks=[benchmark])
        for benchmark, results in of_model[0].items()
        for name in headline(results[0])
    }


def figures(of_model: Evaluations, columns: Mapping[str, Column]) -> dict[str, dict[str, Any]]:
    """Column -> mean, low, high (95 %, over problems, each the mean of its seeds), per_seed; columns that a model has
    no figure for are left out."""
    found = {}
    for name, column in columns.items():
        values_SP = [values_of(seed, column) for seed in of_model]
        if all(None not in values for values in values_SP):
            per_seed = [fmean(values) for values in values_SP]
            found[name] = asdict(bootstrap(_over_seeds(values_SP))) | {"per_seed": per_seed}
    return found


def judged(claim: Claim, models: Mapping[str, Evaluations], columns: Mapping[str, Column]) -> dict[str, Any]:
    """The claim with the paired difference and whether it holds. Raises ConfigError for a row or a figure that does not
    exist."""
    rows = [claim.better] if claim.worse is None else [claim.better, claim.worse]
    sides = [side(row, claim.column, models, columns) for row in rows]
    difference = bootstrap([pair[0] - sum(pair[1:]) for pair in zip(*sides, strict=True)])
    verdict = {"difference": asdict(difference), "holds": difference.low > claim.margin}
    return asdict(claim) | {"text": str(claim)} | verdict


def side(row: str, column: str, models: Mapping[str, Evaluations], columns: Mapping[str, Column]) -> list[float]:
    """One value per problem, the mean over seeds."""
    for kind, name, known in (("row", row, models), ("column", column, columns)):
        if name not in known:
            raise ConfigError(f"claims: no {kind} {name!r}; there are {', '.join(known)}")
    values_SP = [values_of(seed, columns[column]) for seed in models[row]]
    if any(None in values for values in values_SP):
        raise ConfigError(f"claims: the evaluation of {row} has no {column}")
    return _over_seeds(values_SP)


def values_of(results: Mapping[str, Sequence[Result]], column: Column) -> list[float | None]:
    """Problem by problem; a benchmark that was not evaluated says None once."""
    return [
        figure(result, column.figure) if result else None
        for benchmark in column.benchmarks
        for result in results.get(benchmark, [None])
    ]


def _over_seeds(values_SP: Sequence[Sequence[Any]]) -> list[float]:
    return [fmean(values) for values in zip(*values_SP, strict=True)]
