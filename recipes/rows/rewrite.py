"""Chosen samples, rewritten by a helping model and judged again: a rewriting that is no longer right is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerState

from data.problem import Message
from grpo.errors import ConfigError
from grpo.sampling.endpoint import Answer, Endpoint
from grpo.scoring import said, score_groups
from grpo.types import RolloutGroup
from recipes.rows.choose import KeepConfig, Sample, refusal, samples_of
from recipes.rows.rows_folder import RowsFolder
from recipes.rows.traces import spoken
from rewards.rubric import Rubric

PROMPT = Path(__file__).parents[1] / "configs" / "prompts" / "rewrite_cold_start.txt"
PLACES = ("{question}", "{solution}")


@dataclass(frozen=True, kw_only=True)
class RewriteConfig:
    """The helping model behind an OpenAI-compatible server."""

    rewrite_url: str | None = None  # http://host:port/v1; null: nothing is rewritten
    rewrite_model: str = ""  # the model's name there
    # text with {question} and {solution}; null: recipes/configs/prompts/rewrite_cold_start.txt
    rewrite_prompt: str | None = None
    rewrite_temperature: float = 0.6
    rewrite_top_p: float = 0.95
    rewrite_max_tokens: int = 8192  # of one rewriting; one that is cut off is dropped
    rewrite_timeout: float = 600.0  # seconds of one request
    rewrite_concurrency: int = 32  # requests at a time
    rewrite_api_key_env: str = "OPENAI_API_KEY"  # environment variable with the key; unset: no key


@dataclass(frozen=True, kw_only=True)
class Rewriter:
    """A polish (recipes.rows.make_rows)."""

    cfg: RewriteConfig
    endpoint: Endpoint
    prompt: str
    keep: KeepConfig
    tokenizer: Any
    rubric: Rubric
    seed: int

    @classmethod
    def of(cls, cfg: RewriteConfig, keep: KeepConfig, tokenizer: Any, rubric: Rubric, *, seed: int) -> Rewriter | None:
        """None where nothing is rewritten. Raises ConfigError for a prompt without its places, EndpointError where no
        server answers."""
        if cfg.rewrite_url is None:
            return None
        path = Path(cfg.rewrite_prompt or PROMPT)
        try:
            prompt = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"rewrite_prompt: cannot read {path} ({error.strerror})") from error
        if lacking := [place for place in PLACES if place not in prompt]:
            raise ConfigError(f"rewrite_prompt: {path} has no {' and no '.join(lacking)}")
        endpoint = Endpoint(
            cfg.rewrite_url,
            cfg.rewrite_model,
            api_key_env=cfg.rewrite_api_key_env,
            timeout=cfg.rewrite_timeout,
            concurrency=cfg.rewrite_concurrency,
        )
        endpoint.check()
        return cls(cfg=cfg, endpoint=endpoint, prompt=prompt, keep=keep, tokenizer=tokenizer, rubric=rubric, seed=seed)

    def __call__(self, samples: Sequence[Sample], folder: RowsFolder) -> list[tuple[Sample, str]]:
        """The samples in their order, rewritten, without those whose rewriting failed or is not good enough.

        Raises EndpointError where the server is lost, and not each of the samples with it.
        """
        answers = self.endpoint.answers(
            map(self.request, samples),
            n=1,
            temperature=self.cfg.rewrite_temperature,
            top_p=self.cfg.rewrite_top_p,
            max_tokens=self.cfg.rewrite_max_tokens,
            seed=self.seed,
        )
        received = {index: answer for index, (answer,) in answers}
        if any(answer.error is not None for answer in received.values()):
            self.endpoint.check()
        texts = {index: _text(answer) for index, answer in received.items()}
        kept: list[tuple[Sample, str]] = []
        written = [(sample, texts[number]) for number, sample in enumerate(samples)]
        judged = iter(self._judged([(sample, text) for sample, text in written if text is not None]))
        for sample, text in written:
            new = next(judged) if text is not None else None
            why = self._refusal(sample, new)
            if why is None:
                kept.append((new, sample.text))
            else:
                folder.tally.of(sample.problem.task).dropped[why] += 1
                folder.seen.forget(*sample.compared)  # of no row, so a resumed run would not know it either
        return kept

    def request(self, sample: Sample) -> list[Message]:
        solution = said(sample.problem, sample.rollout)
        text = self.prompt.replace("{question}", sample.problem.question).replace("{solution}", solution)
        return [{"role": "user", "content": text}]

    def _judged(self, written: Sequence[tuple[Sample, str]]) -> list[Sample]:
        groups = [
            RolloutGroup(problem=old.problem, rollouts=(spoken(old.problem, text, self.tokenizer),))
            for old, text in written
        ]
        scored, _ = score_groups(groups, self.rubric, trainer_state=TrainerState(), step=0)
        return [
            replace(samples_of(group)[0], sibling=old.sibling, pass_rate=old.pass_rate)
            for (old, _), group in zip(written, scored, strict=True)
        ]

    def _refusal(self, old: Sample, new: Sample | None) -> str | None:
        if new is None:
            return "not rewritten: no answer, or cut off"
        why = refusal(new, self.keep, unjudged=old.correct is None)
        return f"rewritten: {why}" if why else None


def _text(answer: Answer) -> str | None:
    """The rewriting: from its own `<think>` on, behind what the helping model may have thought to itself."""
    if answer.error is not None or answer.finish_reason == "length" or not answer.text.strip():
        return None
    _, tag, rest = answer.text.rpartition("<think>")
    return tag + rest.strip() if tag else answer.text.strip()
