"""reasoning-gym tasks: generated problems that nobody here wrote, scored by their own verifiers."""

from __future__ import annotations

import copy
import decimal
import difflib
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import ModuleType
from typing import Any

from data.functions import named_function
from data.gym_tasks import GOLD_IN_METADATA, OWN_SCORER_TASKS, REFUSED_TASKS, REVIEWED_TASKS, SEPARATE_TASKS
from data.problem import DataError, Message, Problem
from data.report import BadRow, LoadedProblems, LoadReport
from data.rows import normalised
from data.templates import Template, build_prompt

DEFAULT_SIZE = 20_000
GENERATE = """
import json, sys
sys.path[:] = json.loads(sys.stdin.readline())
from reasoning_gym import create_dataset
order = json.loads(sys.stdin.read())
items = list(create_dataset(order["task"], size=order["size"], seed=order["seed"], **order["settings"]))
sys.stdout.write("\\n" + json.dumps(items, default=str))
"""


def load_gym(
    task: str,
    *,
    split: str = "train",
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    heldout_share: float = 0.2,
    split_by: str | None = None,
    template: Template = "chat",
    system_prompt: str | None = None,
    **settings: Any,
) -> LoadedProblems:
    """The problems of one split among `size` generated items; `settings` are the task's own (min_terms=3, ...).

    Item i of seed s is item i - 1 of seed s + 1 (the generators use Random(seed + index)), so two seeds share nearly
    everything. `train` and `test` are therefore told apart by a hash of the normalised question: they stay disjoint
    for any two seeds and sizes. Where two questions can be the same problem in other words, `split_by` names a function
    (package.module:function) from an item to text: items with the same text are on the same side. A repeated question
    is kept once. Items whose own gold answer is blank, or does not
    score 1.0 with the package's scorer, are reported as bad rows (rewards/gym.py tries those that it judges itself,
    before a run starts). Raises `DataError` for a task that was not reviewed and for settings it does not take.
    """
    if split not in ("train", "test"):
        raise DataError(f"gym:{task} has the splits train and test, not {split!r}")
    first: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, item in enumerate(_generate(task, size=size, seed=seed, settings=settings), 1):
        first.setdefault(_digest(item["question"]), (number, item))
    key = named_function(split_by, key="split_by") if split_by else lambda item: item["question"]
    chosen = {
        digest: (number, item)
        for digest, (number, item) in first.items()
        if _is_heldout(_digest(key(item)), heldout_share) == (split == "test")
    }

    problems, bad_rows = [], []
    for digest, (number, item) in chosen.items():
        entry = _with_gold(_jsonable({"task": task, "settings": settings, **item}))
        if _has_sound_gold(entry):
            prompt = build_prompt(item["question"], template=template, system_prompt=system_prompt)
            problems.append(_problem(entry, digest, prompt))
        else:
            bad_rows.append(BadRow(place=f"row {number}", reason="the gold answer is blank or does not score 1.0"))
    report = LoadReport(
        source=f"gym:{task}",
        split=split,
        rows_read=size,
        kept=len(problems),
        bad_rows=tuple(bad_rows),
        repeated=size - len(first),
        other_split=len(first) - len(chosen),
    )
    return LoadedProblems(problems=problems, report=report)


def gym_score(entry: Mapping[str, Any], answer: str) -> float:
    """What the task's own scorer gives `answer`; `entry` is a gym problem's `columns["gym_entry"]`.

    Mostly within 0..1, with partial credit that differs from task to task (chain_sum gives 0.67 to `1-4` for -4).
    An answer that the scorer chokes on scores 0. Raises `DataError` when the entry's task is not among those whose
    own scorer may be used.
    """
    if entry["task"] in OWN_SCORER_TASKS:
        raise DataError(f"gym:{entry['task']} is scored by rewards.gym_scorers, not by the package's scorer")
    return package_score(entry, answer)


def package_score(entry: Mapping[str, Any], answer: str) -> float:
    """As `gym_score`, for an answer that the caller has made sure the package's scorer can bear, whatever the task."""
    score_answer = _scorer(entry["task"], json.dumps(entry["settings"], sort_keys=True))
    try:
        return float(score_answer(answer, copy.deepcopy(entry)))  # knight_swap's scorer writes into it
    except Exception:  # several scorers let int("many") escape; that the entry is sound was shown when it was loaded
        return 0.0


def running_totals_below_30(problem: Problem) -> bool:
    """A filter for chain_sum: every running total, the first term included, lies within 0..29."""
    first, *rest = problem.columns["gym_entry"]["metadata"]["expression"].split()
    total = int(first)
    totals = [total]
    for operator, term in zip(rest[::2], rest[1::2], strict=True):
        total += int(term) if operator == "+" else -int(term)
        totals.append(total)
    return all(0 <= total < 30 for total in totals)


def _generate(task: str, *, size: int, seed: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    if task in SEPARATE_TASKS:
        return _generate_separately(task, size=size, seed=seed, settings=settings)
    with decimal.localcontext():  # decimal_arithmetic sets the precision of the whole process
        return list(_dataset(task, size=size, seed=seed, settings=settings))


def _generate_separately(task: str, *, size: int, seed: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    _dataset(task, size=1, seed=seed, settings=settings)  # settings that do not fit are refused here
    order = json.dumps({"task": task, "size": size, "seed": seed, "settings": settings})
    done = subprocess.run(
        [sys.executable, "-c", GENERATE],
        input=json.dumps(sys.path) + "\n" + order,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DataError(f"gym:{task} could not be generated: {done.stderr.strip().rpartition(chr(10))[2]}")
    return json.loads(done.stdout.rpartition("\n")[2])


def _problem(entry: dict[str, Any], digest: str, prompt: str | list[Message]) -> Problem:
    name, answer = f"gym:{entry['task']}", entry["answer"]
    return Problem(
        id=f"{name}:{digest[:12]}",
        question=entry["question"],
        answer=answer,
        prompt=prompt,
        task=entry["task"],
        source=name,
        columns={"answer": answer, "gym_entry": entry},
    )


def _digest(question: str) -> str:
    return hashlib.sha256(normalised(question).encode()).hexdigest()


def _is_heldout(digest: str, share: float) -> bool:
    return int(digest[:16], 16) < share * 16**16


def _jsonable(item: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples become lists, keys strings, and what JSON lacks (Fraction) its text."""
    return json.loads(json.dumps(item, default=str))


def _with_gold(entry: dict[str, Any]) -> dict[str, Any]:
    place = GOLD_IN_METADATA.get(entry["task"])
    if place is None:
        return entry
    gold = entry["metadata"][place]
    return {**entry, "answer": gold if isinstance(gold, str) else json.dumps(gold)}


def _has_sound_gold(entry: Mapping[str, Any]) -> bool:
    gold = entry["answer"]
    if not isinstance(gold, str) or not gold.strip():
        return False
    return entry["task"] in OWN_SCORER_TASKS or gym_score(entry, gold) == 1.0


@lru_cache(maxsize=64)
def _scorer(task: str, settings: str) -> Callable[[str, dict[str, Any]], float]:
    """One scorer object per task and settings: several tolerances are settings of the task."""
    return _dataset(task, size=1, seed=0, settings=json.loads(settings)).score_answer


def _dataset(task: str, *, size: int, seed: int, settings: Mapping[str, Any]) -> Any:
    _refuse_unreviewed(task)
    reasoning_gym = _import_reasoning_gym()
    try:
        return reasoning_gym.create_dataset(task, size=size, seed=seed, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise DataError(
            f"gym:{task} does not take dataset_kwargs {dict(settings)} with size {size}: {error}"
        ) from error


def _import_reasoning_gym() -> ModuleType:
    """The first import draws from Python's global generator; a run must not depend on when that happens."""
    state = random.getstate()
    try:
        return importlib.import_module("reasoning_gym")
    finally:
        random.setstate(state)


def _refuse_unreviewed(task: str) -> None:
    known = REVIEWED_TASKS | OWN_SCORER_TASKS
    if task in known:
        return
    if task in REFUSED_TASKS:
        raise DataError(f"gym:{task} cannot be trained on: {REFUSED_TASKS[task]}. Choose another task")
    near = difflib.get_close_matches(task, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"reviewed tasks: {', '.join(sorted(known))}"
    raise DataError(f"gym:{task} is not among the tasks that were reviewed; {hint}")
