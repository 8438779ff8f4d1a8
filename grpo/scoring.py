"""Rollouts -> rewards: hands a rubric what TRL hands its reward functions, and cuts its answer back into groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo.types import RolloutGroup, ScoredGroup
from rewards.rubric import Rubric, ScoredRows


def score_groups(
    groups: Sequence[RolloutGroup], rubric: Rubric, *, trainer_state: Any, step: int
) -> tuple[list[ScoredGroup], ScoredRows]:
    """Score all completions of these groups in one call; also returns the flat answer with its metrics and timings.

    Raises RewardError as `Rubric.score` does.
    """
    rows = [(group.problem, rollout) for group in groups for rollout in group.rollouts]
    flat = rubric.score(
        prompts=[problem.prompt for problem, _ in rows],
        completions=[_completion(problem.prompt, rollout.text) for problem, rollout in rows],
        completion_ids=[list(rollout.completion_ids) for _, rollout in rows],
        columns=_columns([problem.columns for problem, _ in rows]),
        trainer_state=trainer_state,
        step=step,
    )
    scored, start = [], 0
    for group in groups:
        scored.append(_slice(group, flat, slice(start, start + len(group))))
        start += len(group)
    return scored, flat


def _completion(prompt: Any, text: str) -> Any:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Row mappings -> one list per column; a row without a column holds None there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _slice(group: RolloutGroup, flat: ScoredRows, part: slice) -> ScoredGroup:
    def cut(table: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {name: values[part] for name, values in table.items()}

    return ScoredGroup(
        group=group,
        rewards_G=flat.rewards[part],
        correct_G=flat.correct[part],
        parts=cut(flat.parts),
        verdicts=cut(flat.verdicts),
        reasons=cut(flat.reasons),
        extra=cut(flat.extra),
    )
