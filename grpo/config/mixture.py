"""`dataset_mixture` -> its sources, each with everything that a source on its own would have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from grpo.config.coerce import build, key_types, refuse_unknown
from grpo.config.schema import DataConfig, EntryConfig
from grpo.errors import ConfigError

Entry = TypeVar("Entry")
_COMMON: dict[str, str | None] = {"split": "dataset_train_split", "columns": None}
TRL_NAMES = {
    "path": "dataset_name", "name": "dataset_config", "data_files": "dataset_name", "fraction": "weight", **_COMMON
}  # fmt: skip
OPEN_R1_NAMES = {"id": "dataset_name", "config": "dataset_config", "weight": "keep", **_COMMON}
FILE_LOADERS = ("json", "parquet")


def sources(cfg: DataConfig) -> list[EntryConfig]:
    """The sources of a run, at least one; what an entry does not say is as at the top level.

    Raises ConfigError for an entry that is no source, and for weights that some have and others lack.
    """
    found = entries(cfg, EntryConfig)
    if len({entry.weight is None for entry in found}) > 1:
        raise ConfigError("dataset_mixture: some entries have a weight and some have none: give one to all or to none")
    return found


def entries(cfg: Any, kind: type[Entry]) -> list[Entry]:
    """The entries of `cfg.dataset_mixture` as `kind`, or the one source that `cfg` is itself; what an entry does not
    say is as in `cfg`. Raises ConfigError."""
    top = {field.name: getattr(cfg, field.name) for field in fields(kind) if hasattr(cfg, field.name)}
    given = enumerate(cfg.dataset_mixture or ())
    return [_entry(kind, top, number, entry) for number, entry in given] or [build(kind, top)]


def weights(cfg: DataConfig) -> list[float] | None:
    """The sources' weights; None where their sizes decide. Raises ConfigError for two sets of them, for too few or too
    many, and for weights that cannot be shares."""
    own = [entry.weight for entry in sources(cfg) if entry.weight is not None]
    given = cfg.mixture_weights
    if given is not None and own:
        raise ConfigError("weights are given both in dataset_mixture and in mixture_weights: keep one of the two")
    if given is not None and len(given) != len(cfg.dataset_mixture):
        count = len(cfg.dataset_mixture)
        raise ConfigError(f"mixture_weights: got {given}; allowed: one for each of the {count} sources")
    chosen = given or own or None
    if chosen is not None and not (min(chosen) >= 0 and 0 < sum(chosen) < math.inf):
        raise ConfigError(f"the weights of dataset_mixture are {chosen}; allowed: none below 0, at least one above")
    return chosen


def names(cfg: DataConfig) -> str:
    """The sources' names, for a line on a console."""
    return ", ".join(str(source.dataset_name) for source in sources(cfg))


def from_trl(datasets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """TRL's `datasets`: [{path, name, data_files, split, columns, fraction}, ...]; fraction is a share of the mixture.

    Raises ConfigError for what has no counterpart here.
    """
    return [_renamed(entry, TRL_NAMES) for entry in datasets]


def from_open_r1(mixture: Mapping[str, Any]) -> list[dict[str, Any]]:
    """open-r1's `dataset_mixture`: {datasets: [{id, config, split, columns, weight}, ...], seed}; weight is the share
    of a data set's rows that is used."""
    return [_renamed(entry, OPEN_R1_NAMES) for entry in mixture.get("datasets", [])]


def _renamed(entry: Mapping[str, Any], ours: Mapping[str, str | None]) -> dict[str, Any]:
    """Null is their word for "not given", and every column of the data reaches the rewards."""
    given = {name: value for name, value in entry.items() if value is not None}
    if unknown := [name for name in given if name not in ours]:
        raise ConfigError(f"dataset_mixture: {', '.join(unknown)} in {dict(entry)}; allowed: {', '.join(ours)}")
    if given.get("path") in FILE_LOADERS and isinstance(given.get("data_files"), str):
        given["path"] = given.pop("data_files")  # load_dataset("json", data_files="rows.jsonl")
    if "data_files" in given:
        raise ConfigError(f"dataset_mixture: data_files in {dict(entry)}; allowed: one file, with path json or parquet")
    return {str(ours[name]): value for name, value in given.items() if ours[name] is not None}


def _entry(kind: type[Entry], top: Mapping[str, Any], number: int, given: Mapping[str, Any]) -> Entry:
    place = f"dataset_mixture, entry {number + 1}"
    try:
        refuse_unknown(given, key_types(kind))
        entry: Any = build(kind, {**top, **given})
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    if entry.dataset_name is None:
        raise ConfigError(f"{place}: dataset_name is required")
    if not 0 < entry.keep <= 1:
        raise ConfigError(f"{place}: keep: got {entry.keep}; allowed: above 0 and at most 1")
    return entry
