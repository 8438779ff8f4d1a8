"""How long prompts are, and whether each leaves room for a completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from data.problem import Message, Problem
from grpo.config import ModelConfig, RunConfig, SamplingConfig
from grpo.errors import ConfigError
from grpo.policy.attention import unknown
from grpo.policy.load import encode_prompt, load_model_config

PROMPTS_MEASURED = 512


def prompt_lengths(problems: Sequence[Problem], tokenizer: Any) -> list[int]:
    """Tokens of a few hundred prompts, evenly spread: what estimates are made from."""
    measured = problems[:: math.ceil(len(problems) / PROMPTS_MEASURED)]
    return [len(encode_prompt(tokenizer, problem.prompt)) for problem in measured]


def most_tokens(tokenizer: Any, prompt: str | list[Message]) -> int:
    """No fewer than the prompt has, and known twenty times faster than by tokenizing: a token holds at least a byte of
    the text, or is put around it, or is a blank put before it. Tokenizers may first bring a text into one of Unicode's
    normal forms, none of which has more bytes than the text and its longest one together."""
    if not isinstance(prompt, str):
        prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    text = prompt if prompt.isascii() else prompt + normalize("NFKD", prompt)
    return len(text.encode(errors="surrogatepass")) + 1 + tokenizer.num_special_tokens_to_add()


def longer_than(limit: int, problems: Sequence[Problem], tokenizer: Any) -> dict[int, int]:
    """Number of each problem whose prompt has more tokens -> how many."""
    may_be = [number for number, one in enumerate(problems) if most_tokens(tokenizer, one.prompt) > limit]
    tokens = {number: len(encode_prompt(tokenizer, problems[number].prompt)) for number in may_be}
    return {number: length for number, length in tokens.items() if length > limit}


def short_enough(problems: list[Problem], limit: int, split: str, tokenizer: Any, notes: list[str]) -> list[Problem]:
    """Those within `max_prompt_length`; how many were dropped is added to `notes`."""
    dropped = longer_than(limit, problems, tokenizer)
    if dropped:
        notes.append(f"{split}: {len(dropped)} prompts over max_prompt_length={limit} tokens were dropped")
    if len(dropped) == len(problems):
        raise ConfigError(f"no prompt of {split} fits into max_prompt_length={limit} tokens")
    return [problem for number, problem in enumerate(problems) if number not in dropped]


def require_room(
    model: ModelConfig, sampling: Sequence[SamplingConfig], problems: Sequence[Problem], tokenizer: Any
) -> None:
    """Raises ConfigError where a prompt could not be sampled from, which a run would else learn when it is drawn.

    `sampling`: what holds, now or later.
    """
    known = unknown(load_model_config(model)) is None  # else another engine samples, which has no budget
    limits = [
        (cfg.max_tokens_in_flight - cfg.max_completion_length, f"max_tokens_in_flight: {cfg.max_tokens_in_flight}")
        for cfg in sampling
        if known and cfg.sampler == "fast" and cfg.max_completion_length < cfg.max_tokens_in_flight
    ]
    if (context := context_of(model)) is not None:
        limits.append((context - 1, f"the model's context of {context}"))
    if not limits:
        return
    limit, whole = min(limits)
    if found := longer_than(limit, problems, tokenizer):
        raise ConfigError(
            f"{len(found)} of {len(problems)} prompts have more than {limit} tokens, the longest "
            f"{max(found.values())}, and leave no room for a completion in {whole}: set max_prompt_length: {limit} or "
            "lower, and longer prompts are dropped and counted"
        )


def context_of(model: ModelConfig) -> int | None:
    """The positions that the model was made for, where its config names them."""
    return getattr(load_model_config(model).get_text_config(), "max_position_embeddings", None)


def room_notes(cfg: RunConfig, prompts: Sequence[int]) -> list[str]:
    """Whether prompt and completion fit into the positions that the model was made for: a warning where some do not.
    Raises ConfigError where none does."""
    limit, longest = context_of(cfg.model), cfg.sampling.max_completion_length
    if limit is None or max(prompts) + longest <= limit:
        return []
    lengths = f"prompts of {min(prompts)} to {max(prompts)} tokens"
    if min(prompts) + longest > limit:
        raise ConfigError(
            f"max_completion_length: got {longest}, after {lengths}; allowed: at most {limit - max(prompts)}, for the "
            f"model's max_position_embeddings is {limit}"
        )
    return [
        f"WARNING: {lengths} and max_completion_length={longest} can exceed the model's "
        f"max_position_embeddings={limit}; with max_prompt_length: {limit - longest} none does"
    ]
