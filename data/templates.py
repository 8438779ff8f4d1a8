"""Prompt text: what a question looks like when the model sees it."""

from __future__ import annotations

from typing import Literal

from data.problem import DataError, Message

Template = Literal["r1_zero", "chat", "plain"]

# DeepSeek-R1 (arXiv 2501.12948), Table 1, verbatim: changing a character changes what is being reproduced.
R1_ZERO_TEMPLATE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: {question}. Assistant:"
)


def build_prompt(question: str, *, template: Template, system_prompt: str | None = None) -> str | list[Message]:
    """The prompt of one question: text for a base model (`r1_zero`, `plain`), chat messages for `chat`.

    Raises `DataError` for an unknown template, and for a system prompt with a template that has no place for one.
    """
    if template == "chat":
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return [*system, {"role": "user", "content": question}]
    if template not in ("r1_zero", "plain"):
        raise DataError(f"prompt_template {template!r} is unknown: choose r1_zero, chat or plain")
    if system_prompt:
        raise DataError(f"prompt_template {template!r} has no system turn: use `chat`, or remove system_prompt")
    # Questions hold braces ({a, b}, LaTeX), which str.format would take for fields.
    return R1_ZERO_TEMPLATE.replace("{question}", question) if template == "r1_zero" else question
