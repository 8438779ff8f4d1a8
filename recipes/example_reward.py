"""A reward in ten lines: how much of the completion is the answer. Any function with TRL's signature is a reward."""

from rewards import reward
from rewards.text import completion_text


@reward("terse")
def terse(*, completions: list, answer: list[str], **_: object) -> list[float | None]:
    """Length of the gold answer over the length of the completion, at most 1; None where there is no gold answer."""
    texts = [completion_text(completion) for completion in completions]
    return [min(1.0, len(gold) / max(1, len(text))) if gold else None for text, gold in zip(texts, answer, strict=True)]
