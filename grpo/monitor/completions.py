"""Every completion of a run in Parquet: `<run>/completions/step-00000012.parquet`, one file per rollout.

Columns: step (the rollout's first update), rollout, problem_id, task, question, answer (gold), sibling, prompt,
completion, stop_reason, length (tokens), reward (null where the row was masked), advantage, correct, and one column per
reward and kind: `reward/<name>`, `verdict/<name>`, `reason/<name>`, `extra/<name>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.errors import ConfigError
from grpo.files import replacing
from grpo.monitor.text import storable

if TYPE_CHECKING:
    import torch

    from data.problem import Problem
    from grpo.types import ScoredGroup

Row = dict[str, Any]

_TYPES = {
    "step": pa.int64(),
    "rollout": pa.int64(),
    "problem_id": pa.string(),
    "task": pa.string(),
    "question": pa.string(),
    "answer": pa.string(),
    "sibling": pa.int64(),
    "prompt": pa.string(),
    "completion": pa.string(),
    "stop_reason": pa.string(),
    "length": pa.int64(),
    "reward": pa.float64(),
    "advantage": pa.float64(),
    "correct": pa.bool_(),
}
_TYPES_BY_PREFIX = {"reward/": pa.float64(), "verdict/": pa.string(), "reason/": pa.string()}


def write_completions(
    run_dir: Path | str,
    rollout_index: int,
    step: int,
    scored_groups: Sequence[ScoredGroup],
    advantages_PG: torch.Tensor,
) -> Path:
    """Writes one rollout, P groups of G rows; `step` is its first update. The file appears complete or not at all."""
    groups = zip(scored_groups, advantages_PG.tolist(), strict=True)
    rows = [row for scored, advantages_G in groups for row in _rows(scored, advantages_G)]
    for row in rows:
        row |= {"step": step, "rollout": rollout_index}
    names = dict.fromkeys([*_TYPES, *(name for row in rows for name in row)])
    table = pa.table({name: _column(name, [row.get(name) for row in rows]) for name in names})
    path = _path(run_dir, step)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def completion_steps(run_dir: Path | str, problem_id: str | None = None) -> list[int]:
    """The steps that have a file, in order; with `problem_id`, only those whose rollout holds that problem.

    Raises ConfigError if there are none.
    """
    steps = _steps(run_dir)
    if not steps:
        raise ConfigError(f"no completions in {_folder(run_dir)}; a run writes them with log_completions: true")
    if problem_id is None:
        return steps
    ids = {
        step: pq.read_table(_path(run_dir, step), columns=["problem_id"])["problem_id"].to_pylist() for step in steps
    }
    if not any(problem_id in ids[step] for step in steps):
        raise ConfigError(
            f"no completions of problem {problem_id!r} in {run_dir}; ids look like {_abridged(ids[steps[0]])}"
        )
    return [step for step in steps if problem_id in ids[step]]


def read_completions(run_dir: Path | str, step: int | None = None) -> list[Row]:
    """The rows of one step, or of all steps in order; one dict per completion. Raises ConfigError if there are none."""
    steps = completion_steps(run_dir)
    if step is not None and step not in steps:
        raise ConfigError(f"no completions of step {step} in {run_dir}; there are steps {_abridged(steps)}")
    wanted = steps if step is None else [step]
    return [row for s in wanted for row in pq.read_table(_path(run_dir, s)).to_pylist()]


def rewind_completions(run_dir: Path | str, step: int) -> None:
    """Removes the files of steps after `step`, so that a resumed run writes them anew."""
    for late in _steps(run_dir):
        if late > step:
            _path(run_dir, late).unlink()


def _folder(run_dir: Path | str) -> Path:
    return Path(run_dir) / "completions"


def _path(run_dir: Path | str, step: int) -> Path:
    return _folder(run_dir) / f"step-{step:08d}.parquet"


def _steps(run_dir: Path | str) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in _folder(run_dir).glob("step-*.parquet"))


def _abridged(values: list[Any]) -> str:
    names = list(dict.fromkeys(str(value) for value in values))
    return ", ".join(names if len(names) <= 10 else [*names[:8], "...", names[-1]])


def _rows(scored: ScoredGroup, advantages_G: list[float]) -> list[Row]:
    problem = scored.group.problem
    by_prefix = {"reward": scored.parts, "verdict": scored.verdicts, "reason": scored.reasons, "extra": scored.extra}
    columns = {f"{prefix}/{name}": values for prefix, named in by_prefix.items() for name, values in named.items()}
    return [
        {
            "problem_id": problem.id,
            "task": problem.task,
            "question": problem.question,
            "answer": problem.answer,
            "sibling": sibling,
            "prompt": _prompt_text(problem),
            "completion": rollout.text,
            "stop_reason": rollout.stop_reason,
            "length": len(rollout.completion_ids),
            "reward": scored.rewards_G[sibling],
            "advantage": advantages_G[sibling],
            "correct": scored.correct_G[sibling],
        }
        | {name: values[sibling] for name, values in columns.items()}
        for sibling, rollout in enumerate(scored.group.rollouts)
    ]


def _prompt_text(problem: Problem) -> str:
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(f"[{message['role']}] {message['content']}" for message in problem.prompt)


def _column(name: str, values: list[Any]) -> pa.Array:
    kind = _TYPES.get(name) or next((t for prefix, t in _TYPES_BY_PREFIX.items() if name.startswith(prefix)), None)
    if kind is None:
        return _extra_column(values)
    if kind == pa.string():
        values = [None if value is None else storable(str(value)) for value in values]
    return pa.array(values, type=kind, from_pandas=True)  # from_pandas: NaN becomes null


def _extra_column(values: list[Any]) -> pa.Array:
    """Numbers and booleans as they are; anything else, mixtures too, as text."""
    try:
        column = pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        column = pa.array([], type=pa.string())
    if len(column) == len(values) and pa.types.is_primitive(column.type):
        return column
    return pa.array([None if value is None else storable(str(value)) for value in values], type=pa.string())
