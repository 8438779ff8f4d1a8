"""Which checkpoint and which data a stage's output came from: `<output_dir>/lineage.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from grpo.checkpoint.keeper import LINEAGE
from grpo.config import DataConfig, RunConfig
from grpo.config.mixture import sources
from grpo.config.parse import to_flat
from grpo.errors import DataError
from grpo.files import write_json_atomic
from grpo.setup import git_commit, versions

FINAL = "final"  # where a stage leaves the model it made


def write_lineage(
    output_dir: Path | str,
    *,
    stage: str,
    inputs: Mapping[str, str | Path],
    config: Any,
    seconds: float,
    counts: Mapping[str, Any] | None = None,
) -> Path:
    """Also into the folder of the model that the stage made, `<output_dir>/final`, where there is one.

    `inputs`: what each is for -> a path, or a Hub id or `gym:` task, which has no fingerprint here. `config`: the
    stage's config dataclass, or a mapping; models that only it names, such as a judge, are inputs too.
    """
    path, final = Path(output_dir) / LINEAGE, Path(output_dir) / FINAL
    keys = to_flat(config) if is_dataclass(config) else dict(config)
    named = {str(name) for name in inputs.values()}
    others = [model for model in dict.fromkeys(models_in(keys)) if model not in named]
    inputs = {**inputs, **{f"model {number}": model for number, model in enumerate(others, 2)}}
    lineage = {
        "stage": stage,
        "inputs": {role: {"name": str(name), "sha256": _fingerprint_or_none(name)} for role, name in inputs.items()},
        "config": keys,
        "counts": dict(counts or {}),
        "seconds": round(seconds, 3),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_json_atomic(path, lineage)
    if final.is_dir():
        write_json_atomic(final / LINEAGE, lineage)
    return path


def write_run_lineage(cfg: RunConfig, *, stage: str, seconds: float) -> None:
    """Of a finished run of the training loop, once: `final/` comes from the loop with the counts alone."""
    run_dir = Path(cfg.output.output_dir)
    exported = json.loads((run_dir / FINAL / LINEAGE).read_text(encoding="utf-8"))
    if "stage" not in exported:
        write_lineage(
            run_dir,
            stage=stage,
            inputs={"model": cfg.model.model_name_or_path, **problem_inputs(cfg.data)},
            config=cfg,
            seconds=seconds,
            counts=exported["counts"],
        )


def frame_trained_in(model: str) -> str | None:
    """`prompt_template` of the run of reinforcement that made a model folder; None where none is known, or several."""
    path = Path(model) / LINEAGE
    config = json.loads(path.read_text(encoding="utf-8")).get("config", {}) if path.is_file() else {}
    if "num_generations" not in config:
        return None
    entries = config.get("dataset_mixture") or [{}]
    frames = {entry.get("prompt_template", config.get("prompt_template")) for entry in entries}
    return frames.pop() if len(frames) == 1 else None


def texts_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) for every text among a stage's keys, however deep."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from texts_in(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from texts_in(item, key)
    elif isinstance(value, str):
        yield key, value


def models_in(keys: Mapping[str, Any]) -> Iterator[str]:
    """Every model that a stage's keys name."""
    for key, text in texts_in(keys):
        if key.endswith("model_name_or_path") or (key == "reward_funcs" and "/" in text):
            yield text


def problem_inputs(cfg: DataConfig) -> dict[str, str]:
    """For `inputs`: every source of a run's problems."""
    return {f"problems {number}": str(source.dataset_name) for number, source in enumerate(sources(cfg), 1)}


def fingerprint_of(path: str | Path) -> str:
    """sha256 (64 hex digits) over the content of a file, or over names and contents of all files in a folder, lineage
    and hidden files aside: the same rows or weights made again have the same. Raises DataError where nothing is there.
    """
    path = Path(path)
    if path.is_file():
        return _sha256(path)
    if not path.is_dir():
        raise DataError(f"no file or folder {str(path)!r} (looked in {Path.cwd()})")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and name.name != LINEAGE and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{_sha256(file)}\n".encode())
    return digest.hexdigest()


def _fingerprint_or_none(name: str | Path) -> str | None:
    return fingerprint_of(name) if Path(name).exists() else None


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_once(path.resolve(), stat.st_size, stat.st_mtime_ns)


@cache
def _sha256_once(path: Path, size: int, mtime_ns: int) -> str:
    """A chain asks after the same weights again and again; size and time say whether they still are the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
