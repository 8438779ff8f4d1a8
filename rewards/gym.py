"""reasoning-gym's own scorer as a reward, paid only where the scorer is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.gym import gym_score
from rewards.format import unpaid, well_formed_rows
from rewards.math.extract import tagged_answer
from rewards.reward import Reward, Verdict
from rewards.text import Conversation, completion_text

MAX_ANSWER = 1_000  # characters


@dataclass(frozen=True)
class Gym:
    """1.0 when the task's scorer gives exactly 1.0 to what stands in `<answer>`, else 0.0.

    Partial credit is not paid: chain_sum's scorer gives 0.67 to `1-4` for -4. `gym_entry` is the column with the
    task's item (question, answer, metadata, task); None there means that the reward does not apply to the row.
    """

    require_format: bool = False
    __name__ = "gym"

    def __call__(
        self,
        *,
        prompts: Sequence[Conversation],
        completions: Sequence[Conversation],
        gym_entry: Sequence[Mapping[str, Any] | None],
        **_: Any,
    ) -> list[Reward]:
        texts = [completion_text(completion) for completion in completions]
        rewards = [judge(text, entry) for text, entry in zip(texts, gym_entry, strict=True)]
        if not self.require_format:
            return rewards
        formed = well_formed_rows(prompts, completions)
        return [reward if good else unpaid(reward) for reward, good in zip(rewards, formed, strict=True)]


def judge(text: str, entry: Mapping[str, Any] | None) -> Reward:
    """One completion's text against one item."""
    if entry is None:
        return Reward(score=None, verdict=Verdict.SKIPPED, reason="no gym_entry")
    answer = tagged_answer(text)
    if answer is None:
        return Reward(score=0.0, correct=False, verdict=Verdict.NO_ANSWER)
    if len(answer) > MAX_ANSWER:
        return Reward(score=0.0, correct=False, verdict=Verdict.WRONG, reason="too long")
    score = gym_score(entry, answer)  # 0.0 where the scorer chokes on the text
    right = score == 1.0
    verdict = Verdict.CORRECT if right else Verdict.WRONG
    return Reward(score=float(right), correct=right, verdict=verdict, extra={"answer": answer[:200]})
