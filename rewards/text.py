"""The text of a prompt or completion, plain or conversational."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Conversation = str | Sequence[Mapping[str, Any]]


def completion_text(completion: Conversation) -> str:
    """What the model said last: the string itself, or the content of the last assistant message ('' if none)."""
    if isinstance(completion, str):
        return completion
    said = [message for message in completion if message.get("role", "assistant") == "assistant"]
    return _content(said[-1]) if said else ""


def think_opened(prompt: Conversation) -> bool:
    """Whether the prompt already ends with `<think>`, so that the completion starts inside it."""
    text = prompt if isinstance(prompt, str) else _content(prompt[-1]) if prompt else ""
    return text.rstrip().endswith("<think>")


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)
