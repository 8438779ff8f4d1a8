"""Is the final answer right? A rule-based verdict against the row's gold answer (DeepSeek-R1, section 2.2)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.format import unpaid, well_formed_rows
from rewards.math.equal import gold_problem, verify
from rewards.math.extract import extract_answer, extract_gold
from rewards.reward import Reward, RewardError, Verdict
from rewards.text import Conversation, completion_text, think_opened

GOLD_COLUMNS = ("answer", "solution")  # ours, then TRL's and open-r1's


@dataclass(frozen=True)
class Accuracy:
    """1.0 when the extracted answer equals the gold of the column `answer` (or `solution`), else 0.0.

    `require_format`: pay only completions that are well-formed too; `correct` stays the judgement of the answer alone.
    A gold of None means that the reward does not apply to the row; a gold that cannot be used masks the row.
    """

    require_format: bool = False
    __name__ = "accuracy"

    def check_columns(self, columns: Collection[str]) -> str:
        """The name of the gold column. Raises RewardError if there is none."""
        for name in GOLD_COLUMNS:
            if name in columns:
                return name
        raise RewardError(f"accuracy needs the column 'answer' or 'solution'; the data has {sorted(columns)}")

    def gold_problem(self, columns: Mapping[str, Any]) -> str | None:
        """Why this row's gold answer cannot be compared with anything; None if it can, or if there is none."""
        gold = columns.get(self.check_columns(columns))
        return None if gold is None else gold_problem(extract_gold(str(gold)))

    def __call__(
        self, *, prompts: Sequence[Conversation], completions: Sequence[Conversation], **columns: Any
    ) -> list[Reward]:
        golds = columns[self.check_columns(_data_columns(columns))]
        texts = [_readable(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        rewards = [judge(text, gold) for text, gold in zip(texts, golds, strict=True)]
        if not self.require_format:
            return rewards
        formed = well_formed_rows(prompts, completions)
        return [reward if good else unpaid(reward) for reward, good in zip(rewards, formed, strict=True)]


def judge(text: str, gold: object) -> Reward:
    """One completion's text against one gold."""
    if gold is None:
        return Reward(score=None, verdict=Verdict.SKIPPED, reason="no gold answer")
    gold_text = extract_gold(str(gold))
    if problem := gold_problem(gold_text):
        return Reward(score=None, verdict=Verdict.ERROR, reason=f"gold answer: {problem}")
    answer = extract_answer(text)
    if answer is None:
        return Reward(score=0.0, correct=False, verdict=Verdict.NO_ANSWER)
    verdict, reason = verify(gold=gold_text, answer=answer)
    right = verdict is Verdict.CORRECT
    return Reward(score=float(right), correct=right, verdict=verdict, reason=reason, extra={"answer": answer[:200]})


def _readable(prompt: Conversation, completion: Conversation) -> str:
    """The completion with the `<think>` that its prompt opened, so that unfinished thinking shows."""
    text = completion_text(completion)
    return "<think>" + text if think_opened(prompt) else text


def _data_columns(columns: Mapping[str, Any]) -> list[str]:
    return [name for name in columns if name not in ("completion_ids", "trainer_state", "log_extra", "log_metric")]
