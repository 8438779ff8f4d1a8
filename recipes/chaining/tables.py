"""The pipeline's tables: a row is the model of a stage, a column what its evaluations say, over all seeds.

Every model is asked the same problems with the same seed, so that differences are paired. Intervals are over problems,
each the mean of its seeds; what the seeds say one by one stands beside them.
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
Values = dict[str, float]  # id of a problem -> what it says


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure (`pass@1`, `cons@16`, `format_rate`, `reward/<name>`, ...) over the problems of these benchmarks."""

    figure: str
    benchmarks: list[str]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What should come out, stated beforehand: in a column `better` exceeds `worse` (None: zero) by more than `margin`,
    with 95 % confidence over problems, and in every seed."""

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
    """Column -> mean, low, high, per_seed; columns that a model has no figure for are left out."""
    found = {name: [values_of(results, column) for results in of_model] for name, column in columns.items()}
    return {name: summed_up(seeds) for name, seeds in found.items() if None not in seeds}


def judged(claim: Claim, models: Mapping[str, Evaluations], columns: Mapping[str, Column]) -> dict[str, Any]:
    """The claim with the paired difference and whether it holds. Raises ConfigError for a row or a figure that does not
    exist, and for models that were asked other problems."""
    rows = [claim.better] if claim.worse is None else [claim.better, claim.worse]
    sides = [side(row, claim.column, models, columns) for row in rows]
    if any(one.keys() != sides[0][0].keys() for seeds in sides for one in seeds):
        raise ConfigError(f"claims: {' and '.join(rows)} were not asked the same problems in {claim.column}")
    differences = [
        {problem: value - sum(other[problem] for other in others) for problem, value in first.items()}
        for first, *others in zip(*sides, strict=True)
    ]
    difference = summed_up(differences)
    holds = min(difference["low"], *difference["per_seed"]) > claim.margin
    return asdict(claim) | {"text": str(claim), "difference": difference, "holds": holds}


def side(row: str, column: str, models: Mapping[str, Evaluations], columns: Mapping[str, Column]) -> list[Values]:
    """What a row's problems say in a column, seed by seed."""
    for kind, name, known in (("row", row, models), ("column", column, columns)):
        if name not in known:
            raise ConfigError(f"claims: no {kind} {name!r}; there are {', '.join(known)}")
    seeds = [values for results in models[row] if (values := values_of(results, columns[column])) is not None]
    if len(seeds) < len(models[row]):
        raise ConfigError(f"claims: the evaluation of {row} has no {column}")
    return seeds


def values_of(results: Mapping[str, Sequence[Result]], column: Column) -> Values | None:
    """None where a benchmark was not asked, or a problem says nothing of the figure."""
    asked = [(benchmark, result) for benchmark in column.benchmarks for result in results.get(benchmark, [None])]
    found = {
        f"{benchmark} {result.problem_id}": value
        for benchmark, result in asked
        if result is not None and (value := figure(result, column.figure)) is not None
    }
    return found if len(found) == len(asked) else None


def summed_up(seeds: Sequence[Values]) -> dict[str, Any]:
    """mean, low, high (95 %, over problems, each the mean of its seeds), per_seed."""
    over_seeds = [fmean(values[problem] for values in seeds) for problem in seeds[0]]
    return asdict(bootstrap(over_seeds)) | {"per_seed": [fmean(values.values()) for values in seeds]}
