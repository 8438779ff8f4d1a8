"""The R1 format: thinking in `<think>` tags, then the answer in `<answer>` tags (DeepSeek-R1, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rewards.reward import Reward
from rewards.text import Conversation, completion_text, think_opened

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def is_well_formed(completion: str, *, think_opened: bool = False) -> bool:
    """`<think>text</think> <answer>text</answer>`, each tag once, nothing but white space around them.

    `think_opened`: the prompt ended with `<think>`, so the completion may start without it. Linear in the length.
    """
    text = completion.strip()
    if think_opened and not text.startswith("<think>"):
        text = "<think>" + text
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    before, _, rest = text.partition("<think>")
    thinking, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, _, after = rest.partition("</answer>")
    return not (before + between + after).strip() and _visible(thinking) and _visible(answer)


class Format:
    """1.0 for a well-formed completion, else 0.0. It pays an empty `<think></think>` nothing, unlike its rivals."""

    __name__ = "format"

    def __call__(
        self, *, prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any
    ) -> list[Reward]:
        return [Reward(score=float(good)) for good in well_formed_rows(prompts, completions)]


def well_formed_rows(prompts: Sequence[Conversation], completions: Sequence[Conversation]) -> list[bool]:
    return [
        is_well_formed(completion_text(completion), think_opened=think_opened(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def unpaid(reward: Reward) -> Reward:
    """`reward` for a completion out of format where format is required: the judgement stays, the score is 0."""
    if reward.score is None:
        return reward
    return replace(reward, score=0.0, reason="not well-formed" if reward.correct else reward.reason)


def _visible(text: str) -> bool:
    return any(character.isprintable() and not character.isspace() for character in text)
