"""Which samples of a problem become rows of a training set, and an account of all others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from data.curate import Seen
from data.problem import Problem
from grpo.scoring import said
from grpo.types import Rollout, ScoredGroup
from rewards.language import question_text
from rewards.reward import Verdict
from rewards.text import untagged

NOT_CHOSEN = "right, but others of the problem come first"
DUPLICATE = "the same words as another row"
PASS_RATE = "a problem outside min_pass_rate..max_pass_rate"


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Which samples become rows. One that is wrong, cut off or a copy never does."""

    # a reward of reward_funcs: the least score, for example {format: 1, language_consistency: 0.95}
    keep_at_least: dict[str, float] = field(default_factory=dict)
    max_kept_length: int | None = None  # tokens of a completion; null: any that is not cut off
    # which of a problem's good samples come first: those sampled first, the best rewarded, the shortest
    choose: Literal["all", "best", "shortest"] = "all"
    max_per_problem: int | None = None  # rows of one problem, at least 1; null: all that are good
    min_pass_rate: float = 0.0  # problems solved less often leave no row; from 0 to 1
    max_pass_rate: float = 1.0  # problems solved more often leave no row; from 0 to 1
    # benchmarks, as entries of dataset_mixture: no problem that shares ten words in a row with one is sampled
    decontaminate: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion and what the rewards said. reward: NaN where none of positive weight applied. failed: a reward
    could not judge it."""

    problem: Problem
    rollout: Rollout
    sibling: int
    reward: float
    correct: bool | None
    parts: Mapping[str, float | None]
    failed: bool
    pass_rate: float | None

    @property
    def text(self) -> str:
        """All that the assistant said."""
        return said(self.problem, self.rollout)

    @property
    def compared(self) -> tuple[str, str]:
        """Its question and its words: a row of the same ones is its copy."""
        return question_text(self.problem.prompt), untagged(self.text)


@dataclass(kw_only=True)
class Counts:
    """Of one task. solved: problems with a right sample. judged: samples that were called right or wrong. tokens: of
    the rows. dropped: reason -> samples."""

    problems: int = 0
    solved: int = 0
    samples: int = 0
    judged: int = 0
    correct: int = 0
    rows: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.dropped = Counter(self.dropped)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "dropped": dict(self.dropped)}

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(kw_only=True)
class Tally:
    """What became of everything that was sampled, task by task."""

    tasks: dict[str, Counts] = field(default_factory=dict)

    @classmethod
    def from_json(cls, tasks: Mapping[str, Mapping[str, Any]]) -> Tally:
        return cls(tasks={task: Counts(**counts) for task, counts in tasks.items()})

    def as_json(self) -> dict[str, Any]:
        return {task: counts.as_json() for task, counts in self.tasks.items()}

    def of(self, task: str) -> Counts:
        return self.tasks.setdefault(task, Counts())

    @property
    def total(self) -> Counts:
        return sum(self.tasks.values(), Counts())

    def lines(self) -> list[str]:
        """DeepSeek-R1's Table 5 (domain, rows, mean tokens) with pass rates before it, and below it the dropped."""
        head = ("domain", "problems", "solved", "samples", "pass rate", "rows", "mean tokens")
        rows = [head, *(_figures(task, counts) for task, counts in [*self.tasks.items(), ("total", self.total)])]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        table = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        dropped = [f"  {count:8,} dropped: {reason}" for reason, count in self.total.dropped.most_common()]
        return table + dropped


def choose(scored: ScoredGroup, cfg: KeepConfig, seen: Seen, tally: Tally, *, unjudged: bool = False) -> list[Sample]:
    """The samples of one problem that become rows, in the order in which they were sampled.

    `seen` and `tally` are kept up to date. `unjudged`: samples that no reward judged are good too.
    """
    samples = samples_of(scored)
    counts = tally.of(scored.group.problem.task)
    _count(samples, counts)
    rate = samples[0].pass_rate
    if rate is not None and not cfg.min_pass_rate <= rate <= cfg.max_pass_rate:
        counts.dropped[PASS_RATE] += len(samples)
        return []
    kept: list[Sample] = []
    for sample in sorted(samples, key=lambda sample: _before(sample, cfg)):
        why = refusal(sample, cfg, unjudged=unjudged)
        if why is None and cfg.max_per_problem is not None and len(kept) == cfg.max_per_problem:
            why = NOT_CHOSEN
        if why is None and not seen.add(*sample.compared):
            why = DUPLICATE
        if why is None:
            kept.append(sample)
        else:
            counts.dropped[why] += 1
    return sorted(kept, key=lambda sample: sample.sibling)


def samples_of(scored: ScoredGroup) -> list[Sample]:
    judged = [correct for correct in scored.correct_G if correct is not None]
    return [
        Sample(
            problem=scored.group.problem,
            rollout=rollout,
            sibling=number,
            reward=scored.rewards_G[number],
            correct=scored.correct_G[number],
            parts={name: scores[number] for name, scores in scored.parts.items()},
            failed=any(verdicts[number] is Verdict.ERROR for verdicts in scored.verdicts.values()),
            pass_rate=sum(judged) / len(judged) if judged else None,
        )
        for number, rollout in enumerate(scored.group.rollouts)
    ]


def refusal(sample: Sample, cfg: KeepConfig, *, unjudged: bool = False) -> str | None:
    """Why this sample cannot be a row, whatever its siblings are; None if it can."""
    if sample.rollout.truncated:
        return "cut off at max_completion_length"
    if sample.failed:
        return "a reward failed"
    if sample.correct is False:
        return "wrong"
    if sample.correct is None and math.isnan(sample.reward) and not unjudged:
        return "nobody judged it"
    for name, least in cfg.keep_at_least.items():
        score = sample.parts[name]
        if score is not None and score < least:
            return f"{name} below {least:g}"
    if cfg.max_kept_length is not None and len(sample.rollout.completion_ids) > cfg.max_kept_length:
        return f"longer than max_kept_length={cfg.max_kept_length}"
    return None


def _before(sample: Sample, cfg: KeepConfig) -> float:
    """What the samples of a problem are sorted by; among equals the one sampled first comes first."""
    if cfg.choose == "shortest":
        return len(sample.rollout.completion_ids)
    return -sample.reward if cfg.choose == "best" and not math.isnan(sample.reward) else 0.0


def _count(samples: Sequence[Sample], counts: Counts) -> None:
    counts.problems += 1
    counts.solved += any(sample.correct for sample in samples)
    counts.samples += len(samples)
    counts.judged += sum(sample.correct is not None for sample in samples)
    counts.correct += sum(bool(sample.correct) for sample in samples)


def _figures(task: str, counts: Counts) -> tuple[str, ...]:
    rate = f"{counts.correct / counts.judged:.1%}" if counts.judged else "-"
    mean = f"{counts.tokens / counts.rows:,.1f}" if counts.rows else "-"
    return (
        task,
        *(f"{number:,}" for number in (counts.problems, counts.solved, counts.samples)),
        rate,
        f"{counts.rows:,}",
        mean,
    )
