"""Every sample of an evaluation, on disk as it comes, and what the samples say about each problem.

The samples lie as a run's completions do (`grpo show` pages through them), one file for each piece of work, with the
columns of grpo.monitor.completions and: benchmark, problem (its number there), think_opened, and the protocol's
(prompt_sha256, template_sha256, temperature, top_p, max_completion_length, seed), so that a row needs no other file.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from grpo.errors import ConfigError
from grpo.evaluation import consensus_is_correct, pass_at_k
from grpo.files import write_text_atomic
from grpo.intervals import Interval, bootstrap
from grpo.monitor.completions import Row, path_of, read_completions, stored_steps, write_rows
from grpo.scoring import whole
from rewards.format import is_well_formed
from rewards.math.extract import extract_answer

RESULTS_FILE = "results.jsonl"
MEASURED = ("format_rate", "mean_length", "clipped_ratio")  # figures that are fields of Result
CUT = 200  # characters of an answer that a reward tells
SHOWN_PROBLEMS, SHOWN_SAMPLES = 4, 2


class SampleStore:
    """Rows of whole problems in `<run_dir>/completions`; `done`: benchmark -> numbers of the problems there are."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.done = run_dir, defaultdict(set)
        steps = stored_steps(run_dir)
        self.next = steps[-1] + 1 if steps else 0
        for step in steps:
            table = pq.read_table(path_of(run_dir, step), columns=["benchmark", "problem"]).to_pylist()
            for row in table:
                self.done[row["benchmark"]].add(row["problem"])

    def write(self, rows: Sequence[Row]) -> None:
        """One file more, there whole or not at all."""
        write_rows(self.run_dir, self.next, [{"step": self.next, "rollout": self.next, **row} for row in rows])
        self.next += 1
        for row in rows:
            self.done[row["benchmark"]].add(row["problem"])

    def problems(self) -> Iterator[list[Row]]:
        """The samples of one problem after the other, in the order in which they came; one file is in memory."""
        for step in stored_steps(self.run_dir):
            rows = read_completions(self.run_dir, step)
            for _, of_problem in groupby(rows, key=lambda row: (row["benchmark"], row["problem"])):
                yield list(of_problem)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One problem of a benchmark. correct: its samples, None where nobody judged one. consensus: whether the majority's
    answer is right, None where answers are not compared. mean_length: tokens, None where nobody counted. scores: reward
    -> mean over the samples it applied to, None where it applied to none."""

    benchmark: str
    problem: int
    problem_id: str
    correct: list[bool | None]
    consensus: bool | None
    mean_length: float | None
    clipped_ratio: float | None
    format_rate: float
    scores: dict[str, float | None]

    @property
    def right(self) -> int:
        return sum(map(bool, self.correct))


def result_of(rows: Sequence[Row], *, votes: bool) -> Result:
    """What the samples of one problem say; `votes`: whether their answers can be compared."""
    first, correct = rows[0], [row["correct"] for row in rows]
    votes = votes and any(one is not None for one in correct)
    ends = [row["stop_reason"] for row in rows]
    lengths = [row["length"] for row in rows]
    return Result(
        benchmark=first["benchmark"],
        problem=first["problem"],
        problem_id=first["problem_id"],
        correct=correct,
        consensus=consensus_is_correct([answer_of(row) for row in rows], correct) if votes else None,
        mean_length=None if None in lengths else fmean(lengths),
        clipped_ratio=None if None in ends else fmean(end == "length" for end in ends),
        format_rate=fmean(is_well_formed(_said(row)) for row in rows),
        scores={name.partition("/")[2]: _mean(rows, name) for name in first if name.startswith("reward/")},
    )


def _mean(rows: Sequence[Row], column: str) -> float | None:
    scores = [row[column] for row in rows if row.get(column) is not None]
    return fmean(scores) if scores else None


def answer_of(row: Row) -> str | None:
    """The answer as the reward read it; where none read one, or it was cut short, as it is marked: an answer in a form
    that was refused is a vote all the same."""
    told = [value for name, value in row.items() if name.startswith("extra/") and name.endswith("/answer")]
    read = next((value for value in told if value is not None), None)
    return read if read is not None and len(read) < CUT else extract_answer(_said(row))


def _said(row: Row) -> str:
    return whole(row["completion"], think_opened=row["think_opened"])


def figures(results: Sequence[Result]) -> dict[str, Interval]:
    """Means over the problems of one benchmark, with bootstrap intervals over problems.

    pass@1 is the mean over a problem's k samples, pass@j for the powers of two up to k the unbiased estimate, cons@k
    whether the majority is right; none of them where no reward judges. `reward/<name>`: that reward's score.
    """
    size = len(results[0].correct)
    sizes = sorted({*(2**power for power in range(size.bit_length())), size})
    names = [*(f"pass@{k}" for k in sizes), *headline_of(size)[1:]]
    names += [f"reward/{name}" for name in dict.fromkeys(name for result in results for name in result.scores)]
    columns = {name: [figure(result, name) for result in results] for name in names}
    return {name: bootstrap(column) for name, column in columns.items() if None not in column}


def headline(result: Result) -> list[str]:
    """The figures that two evaluations are compared by."""
    return [*headline_of(len(result.correct)), *(f"reward/{name}" for name in result.scores)]


def headline_of(size: int) -> list[str]:
    """Those that do not depend on the rewards, where a problem has so many samples; one sample has no majority."""
    return ["pass@1", *([f"cons@{size}"] if size > 1 else []), *MEASURED]


def check_figure(name: str, size: int) -> None:
    """Raises ConfigError for a figure that `size` samples of a problem cannot have."""
    kind, _, k = name.partition("@")
    drawn = kind == "pass" and k.isdecimal() and 1 <= int(k) <= size
    if not (drawn or name in headline_of(size) or name.startswith("reward/")):
        allowed = [*headline_of(size), f"pass@k with k at most {size}", "reward/<name>"]
        raise ConfigError(f"no figure {name!r} where a problem has {size} samples; there are {', '.join(allowed)}")


def figure(result: Result, name: str) -> float | None:
    """What one problem says of a figure; None where it says nothing. Raises ConfigError for one that it cannot have."""
    size = len(result.correct)
    check_figure(name, size)
    kind, _, k = name.partition("@")
    if name.startswith("reward/"):
        return result.scores.get(name.removeprefix("reward/"))
    if kind == "pass":
        judged = any(correct is not None for correct in result.correct)
        return pass_at_k(size, result.right, int(k)) if judged else None
    if kind == "cons":
        return None if result.consensus is None else float(result.consensus)
    return getattr(result, name)


def verdict_counts(rows: Sequence[Row]) -> Counter[str]:
    """`<reward>/<verdict>` -> samples."""
    return Counter(
        f"{name.removeprefix('verdict/')}/{value}"
        for row in rows
        for name, value in row.items()
        if name.startswith("verdict/") and value is not None
    )


@dataclass
class Tally:
    """What is known of one benchmark once all its samples went by. lengths: tokens of the right and of the others;
    shown: the first samples of the first problems, not hand-picked."""

    votes: bool
    results: list[Result] = field(default_factory=list)
    verdicts: Counter[str] = field(default_factory=Counter)
    lengths: dict[bool, list[int]] = field(default_factory=lambda: {True: [], False: []})
    shown: list[Row] = field(default_factory=list)

    def add(self, rows: Sequence[Row]) -> None:
        """The samples of one problem."""
        if len(self.results) < SHOWN_PROBLEMS:
            self.shown += rows[:SHOWN_SAMPLES]
        self.results.append(result_of(rows, votes=self.votes))
        self.verdicts += verdict_counts(rows)
        for row in rows:
            if row["length"] is not None:
                self.lengths[bool(row["correct"])].append(row["length"])

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the benchmark, beside its protocol."""
        judgements = [correct for result in self.results for correct in result.correct]
        return {
            "figures": {name: asdict(interval) for name, interval in figures(self.results).items()},
            "problems": len(self.results),
            "samples": len(self.results[0].correct),
            "unjudged": judgements.count(None),
            "verdicts": dict(self.verdicts.most_common()),
        }


def write_results(run_dir: Path, results: Sequence[Result]) -> None:
    write_text_atomic(run_dir / RESULTS_FILE, "".join(json.dumps(asdict(result)) + "\n" for result in results))


def read_results(run_dir: Path) -> dict[str, list[Result]]:
    """Benchmark -> its problems' results, by number. Raises ConfigError for a folder that holds no evaluation."""
    path = run_dir / RESULTS_FILE
    if not path.is_file():
        raise ConfigError(f"{run_dir} holds no {RESULTS_FILE}; give the output_dir of a finished recipes.evaluate")
    found: dict[str, list[Result]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        result = Result(**json.loads(line))
        found[result.benchmark].append(result)
    return {name: sorted(results, key=lambda result: result.problem) for name, results in found.items()}
