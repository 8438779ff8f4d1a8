"""What a chat template puts around a question and its answer, and the one without which a model cannot be asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from grpo.errors import ConfigError
from grpo.policy.load import encode_prompt

QUESTION, ANSWER = "How many?", "AN ANSWER"  # for looking at a template
THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True, kw_only=True)
class Frame:
    """prompt: a question as a model is asked it. before, after: what stands around the answer of a finished turn."""

    prompt: str
    before: str
    after: str


def frame_of(tokenizer: Any) -> Frame:
    """What the tokenizer's chat template does. Raises ConfigError where there is none, and for one without a generation
    prompt, after which a model would go on in the user's turn."""
    asked = [{"role": "user", "content": QUESTION}]
    answered = [*asked, {"role": "assistant", "content": ANSWER}]
    encode_prompt(tokenizer, asked)  # says what to do where there is no template
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    before, _, after = tokenizer.apply_chat_template(answered, tokenize=False).rpartition(ANSWER)
    _require_generation_prompt(prompt.removesuffix(opened_by(prompt)), before)
    return Frame(prompt=prompt, before=before, after=after)


def opened_by(prompt: str) -> str:
    """`<think>` and the blanks after it where the prompt ends with that; else nothing."""
    found = re.search(rf"{THINK}\s*\Z", prompt)
    return found.group() if found else ""


def _require_generation_prompt(prompt: str, before: str) -> None:
    """`before`: a conversation up to the assistant's words. A template may add an empty `<think>` block there."""
    if not before.startswith(prompt.rstrip()):
        return  # renders prompts in another way than history, to which there is nothing to compare
    missing = re.sub(rf"{THINK}|{END_THINK}", "", before[len(prompt.rstrip()) :]).strip()
    if missing:
        raise ConfigError(
            f"the chat template has no generation prompt: prompts end with {prompt[-24:]!r}, and an answer stands "
            f"after {missing!r}. Give a `chat_template` that adds it under `add_generation_prompt`"
        )
