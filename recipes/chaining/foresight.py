"""What a chain would miss, told before anything has run: files that nobody brought, figures that nobody measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.readers import FILE_TYPES
from grpo.config.coerce import nearest
from grpo.errors import ConfigError
from grpo.monitor.samples import check_figure, headline_of
from recipes.asking.answering import given_samples
from recipes.asking.asked import entries, name_of, samples_of
from recipes.chaining.chain import REFERENCE, Stage, paths_of
from recipes.chaining.tables import Claim, Column
from recipes.evaluate import EvaluateConfig
from recipes.lineage import texts_in

Benchmarks = Mapping[str, int]  # benchmark -> samples of each problem
OF_DATA = ("dataset_name", "mix_dataset", "samples", "benchmarks")  # keys that name data


def missing_files(stages: Sequence[Stage]) -> list[str]:
    """The data files that stages take from outside and that are not there, `{split}` for any."""
    return [
        f"{stage.name}: {key}: no file {text!r}"
        for stage in stages
        for key, text in dict.fromkeys(texts_in(stage.keys))
        if key in OF_DATA and Path(text).suffix in FILE_TYPES and not REFERENCE.fullmatch(text) and not paths_of(text)
    ]


def benchmarks_of(cfg: EvaluateConfig) -> Benchmarks:
    """What an evaluation will ask. Raises ConfigError, DataError."""
    if cfg.given.samples is not None:
        asked, *_ = given_samples(cfg.given, cfg.protocol, cfg.data.reward_funcs or ["accuracy"])
        return {asked.name: asked.samples}
    return {name_of(entry): samples_of(entry, cfg.protocol) for entry in entries(cfg.data)}


def check_tables(rows: Mapping[str, Benchmarks], columns: Mapping[str, Column], claims: Sequence[Claim]) -> None:
    """Raises ConfigError for a column that no row can have, a figure that a row's samples cannot have, and a claim
    about a row, or a column of it, that there will not be."""
    asked = {benchmark for benchmarks in rows.values() for benchmark in benchmarks}
    for name, column in columns.items():
        for benchmark in column.benchmarks:
            _refuse_unknown(benchmark, sorted(asked), f"columns: {name}: no benchmark")
            for row, benchmarks in rows.items():
                if benchmark in benchmarks:
                    _check_figure(column.figure, benchmarks[benchmark], f"columns: {name}: {row}")
    columns = columns or columns_of(rows, claims)
    for claim in claims:
        _refuse_unknown(claim.column, columns, f"claims: {claim}: no column")
        for row in [claim.better] if claim.worse is None else [claim.better, claim.worse]:
            _refuse_unknown(row, rows, f"claims: {claim}: no row")
            for benchmark in columns[claim.column].benchmarks:
                _refuse_unknown(benchmark, rows[row], f"claims: {claim}: {row} is not asked")


def columns_of(rows: Mapping[str, Benchmarks], claims: Sequence[Claim]) -> dict[str, Column]:
    """Those of tables without a choice of columns; which rewards there will be is known only from the claims."""
    figures = (claim.column.rpartition(" ")[2] for claim in claims)
    rewards = [figure for figure in figures if figure.startswith("reward/")]
    return {
        f"{benchmark} {figure}": Column(figure=figure, benchmarks=[benchmark])
        for benchmarks in rows.values()
        for benchmark, size in benchmarks.items()
        for figure in (*headline_of(size), *rewards)
    }


def _check_figure(figure: str, size: int, where: str) -> None:
    try:
        check_figure(figure, size)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _refuse_unknown(name: str, known: Mapping[str, object] | Sequence[str], what: str) -> None:
    if name not in known:
        raise ConfigError(f"{what} {name!r}; there are {', '.join(known) or 'none'}.{nearest(name, known)}")
