"""`dataset_name` -> problems: reasoning-gym tasks, GSM8K, files, folders and Hub datasets through one function."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.benchmarks import BENCHMARKS
from data.functions import named_function
from data.gym import load_gym
from data.problem import DataError, Problem
from data.readers import read_rows
from data.report import BadRow, LoadedProblems, LoadReport, describe
from data.rows import RowError, RowFormat, to_problem
from data.templates import Template

Refusal = Callable[[Problem], str | None]


def load_problems(  # noqa: PLR0913 - one argument per DataConfig key, in its order
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    kwargs: dict[str, Any] | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    template: Template = "chat",
    system_prompt: str | None = None,
    task: str | None = None,
    filter_path: str | None = None,
    allow_bad_rows: bool = False,
    refuse: Refusal = lambda problem: None,
) -> LoadedProblems:
    """Every problem of one split, in the order of the rows.

    `name`: `gym:<task>` (`kwargs`: see `load_gym`), `<benchmark>:<path or Hub id>` (gsm8k and the others of
    data.benchmarks), a .jsonl, .json, .parquet or .csv path (`{split}` in it is replaced), a folder, or a Hub id. The
    prompt column holds text, or chat messages that are used as they are; `answer_column` None means that there are no
    gold answers. `task` names the task of all problems, in place of their own names. `refuse` gives the reason why a
    row of a file cannot be used, or None. Raises `DataError` for rows that cannot be trained on (unless
    `allow_bad_rows`, which drops them), and when no problem is left.
    """
    fmt = RowFormat(
        prompt_column=prompt_column,
        answer_column=answer_column,
        task=task,
        template=template,
        system_prompt=system_prompt,
    )
    kind, _, rest = name.partition(":")
    if kind == "gym":
        loaded = load_gym(rest, split=split, template=template, system_prompt=system_prompt, **(kwargs or {}))
        loaded = replace(loaded, problems=[replace(problem, task=task or problem.task) for problem in loaded.problems])
    elif kwargs:
        raise DataError(
            f"dataset_kwargs {sorted(kwargs)} are settings of a gym: task; {name!r} takes none: "
            "set `dataset_kwargs: {}`"
        )
    elif kind in BENCHMARKS:
        loaded = _load_rows(rest, fmt, BENCHMARKS[kind].make, refuse, config=config, split=split)
    else:
        loaded = _load_rows(name, fmt, to_problem, refuse, config=config, split=split)
    return _checked(_filtered(loaded, filter_path), allow_bad_rows)


def _load_rows(
    name: str, fmt: RowFormat, make: Callable[..., Problem], refuse: Refusal, *, config: str | None, split: str
) -> LoadedProblems:
    made: list[tuple[str, Problem]] = []
    bad_rows: list[BadRow] = []
    stem = Path(name.replace("{split}", split)).name
    for row in read_rows(name, config=config, split=split):
        if isinstance(row, BadRow):
            bad_rows.append(row)
            continue
        try:
            id = f"{stem}:{row.place.split()[1]}"
            problem = make(row.columns, fmt, id=id, source=name)
        except RowError as error:
            bad_rows.append(BadRow(place=row.place, reason=str(error)))
            continue
        if reason := refuse(problem):
            bad_rows.append(BadRow(place=row.place, reason=reason))
        else:
            made.append((row.place, problem))
    rows_read = len(made) + len(bad_rows)
    problems, conflicts = _without_conflicts(made)
    report = LoadReport(
        source=name, split=split, rows_read=rows_read, kept=len(problems), bad_rows=(*bad_rows, *conflicts)
    )
    return LoadedProblems(problems=problems, report=report)


def _without_conflicts(made: Sequence[tuple[str, Problem]]) -> tuple[list[Problem], list[BadRow]]:
    """Rows that ask the same and disagree about the answer: nobody can tell which is right, so all of them go."""
    answers = defaultdict(set)
    for _, problem in made:
        answers[json.dumps(problem.prompt)].add(problem.answer)
    clear, conflicts = [], []
    for place, problem in made:
        if len(answers[json.dumps(problem.prompt)]) == 1:
            clear.append(problem)
        else:
            conflicts.append(BadRow(place=place, reason="same prompt as another row, with another answer"))
    return clear, conflicts


def _filtered(loaded: LoadedProblems, path: str | None) -> LoadedProblems:
    if path is None:
        return loaded
    wanted = named_function(path, key="dataset_filter")
    kept = [problem for problem in loaded.problems if wanted(problem)]
    report = replace(loaded.report, kept=len(kept), filtered=len(loaded.problems) - len(kept), filter_path=path)
    return LoadedProblems(problems=kept, report=report)


def _checked(loaded: LoadedProblems, allow_bad_rows: bool) -> LoadedProblems:
    report = loaded.report
    if report.bad_rows and not allow_bad_rows:
        raise DataError(
            f"{report.source} ({report.split}): {len(report.bad_rows)} of {report.rows_read} rows cannot be trained "
            f"on:\n{describe(report.bad_rows)}\nCorrect them, name the right columns (dataset_prompt_column, "
            f"dataset_answer_column), or set `allow_bad_rows: true` to drop them."
        )
    if not loaded.problems:
        raise DataError(f"no problem is left to train on. What became of the rows:\n{report}")
    return loaded
