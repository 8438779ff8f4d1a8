"""The reference sampling engine: `transformers.generate`, with the draw itself replaced by per-row random streams.

Given the same logits, a completion depends on (seed, round, problem's position, sibling) and on nothing else. The
logits themselves can differ in the last bits with the batch they are computed in (padding, GEMM shapes), so a draw
that falls within such a bit of a boundary may change with the batch composition; that is the engine's limit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from data.problem import Problem
from grpo.config import SamplingConfig
from grpo.policy.load import Policy
from grpo.sampling.protocol import uniform_streams
from grpo.types import Rollout, RolloutGroup, StopReason


def truncations(cfg: SamplingConfig) -> list[LogitsProcessor]:
    """What cuts the tail of the distribution, in transformers' own order."""
    warpers: list[LogitsProcessor] = []
    if cfg.top_k:
        warpers.append(TopKLogitsWarper(cfg.top_k))
    if cfg.top_p < 1:
        warpers.append(TopPLogitsWarper(cfg.top_p))
    if cfg.min_p:
        warpers.append(MinPLogitsWarper(cfg.min_p))
    return warpers


class InverseCdfDraw(LogitsProcessor):
    """Draws each row's token from its own stream and hands `generate` a one-hot choice; remembers log-probabilities.

    `uniforms_BT` float64 in [0, 1). After generation `logprobs()` is (B, steps), float32: log p of the drawn token at
    the sampling temperature, before truncation.
    """

    def __init__(self, uniforms_BT: torch.Tensor, prompt_length: int, cfg: SamplingConfig) -> None:
        self.uniforms_BT = uniforms_BT
        self.prompt_length = prompt_length
        self.temperature = cfg.temperature
        self.penalty = RepetitionPenaltyLogitsProcessor(cfg.repetition_penalty) if cfg.repetition_penalty != 1 else None
        self.truncations = truncations(cfg)
        self.chosen_logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits = scores.float()
        if self.penalty is not None:
            logits = self.penalty(input_ids, logits)
        logits = logits / self.temperature
        logprobs_BV = logits.log_softmax(-1)
        for truncate in self.truncations:
            logits = truncate(input_ids, logits)
        cdf_BV = logits.double().softmax(-1).cumsum(-1)
        step = input_ids.shape[1] - self.prompt_length
        threshold = self.uniforms_BT[:, step, None] * cdf_BV[:, -1:]
        token = torch.searchsorted(cdf_BV, threshold, right=True).clamp_max(cdf_BV.shape[1] - 1)
        self.chosen_logprobs.append(logprobs_BV.gather(1, token)[:, 0])
        return torch.full_like(logits, float("-inf")).scatter_(1, token, 0.0)

    def logprobs(self) -> torch.Tensor:
        return torch.stack(self.chosen_logprobs, dim=1)


class ReferenceSampler:
    """A `Sampler` on `transformers.generate`: any causal model, no second copy of the weights, no cast of them."""

    def __init__(self, policy: Policy, cfg: SamplingConfig, *, seed: int, synced: bool = False) -> None:
        self.policy, self.cfg, self.seed, self.synced = policy, cfg, seed, synced

    def sample(self, problems: Sequence[Problem], *, positions: Sequence[int], round_key: int) -> list[RolloutGroup]:
        group_size, budget = self.cfg.num_generations, self.cfg.max_completion_length
        uniforms = torch.from_numpy(uniform_streams(self.seed, round_key, positions, group_size, budget))
        prompts = [self.policy.encode_prompt(problem.prompt) for problem in problems]
        rows = [prompt for prompt in prompts for _ in range(group_size)]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        rollouts: dict[int, Rollout] = {}
        for start in range(0, len(order), self.cfg.rows_per_forward):
            chunk = order[start : start + self.cfg.rows_per_forward]
            sampled = self._generate([rows[row] for row in chunk], uniforms[chunk])
            rollouts.update(zip(chunk, sampled, strict=True))
        return [
            RolloutGroup(problem=problem, rollouts=tuple(rollouts[p * group_size + g] for g in range(group_size)))
            for p, problem in enumerate(problems)
        ]

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], uniforms_BT: torch.Tensor) -> list[Rollout]:
        policy, cfg = self.policy, self.cfg
        width = max(map(len, prompts))
        input_ids = torch.tensor([[policy.pad_id] * (width - len(p)) + p for p in prompts], device=policy.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
        draw = InverseCdfDraw(uniforms_BT.to(policy.device), width, cfg)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=cfg.max_completion_length,
            eos_token_id=list(policy.eos_ids),
            pad_token_id=policy.pad_id,
            stop_strings=cfg.stop_strings or None,
        )
        with policy.eval_mode():
            output = policy.model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([draw]),
                synced_gpus=self.synced,
                tokenizer=policy.tokenizer if cfg.stop_strings else None,
            )
        completions, logprobs = output[:, width:].tolist(), draw.logprobs().tolist()
        return [self._rollout(*row) for row in zip(prompts, completions, logprobs, strict=True)]

    def _rollout(self, prompt: list[int], tokens: list[int], logprobs: list[float]) -> Rollout:
        length, stop_reason = self._end(tokens)
        return Rollout(
            prompt_ids=tuple(prompt),
            completion_ids=tuple(tokens[:length]),
            sampler_logprobs=tuple(logprobs[:length]),
            text=self.policy.decode(tokens[:length]),
            stop_reason=stop_reason,
        )

    def _end(self, tokens: list[int]) -> tuple[int, StopReason]:
        """How many of the row's tokens are its own, and why it ended there."""
        eos = next((i for i, token in enumerate(tokens) if token in self.policy.eos_ids), None)
        if eos is not None:
            return eos + 1, "eos"
        for stop in self.cfg.stop_strings:
            if stop in self.policy.decode(tokens):
                return 1 + bisect_left(
                    range(len(tokens)), True, key=lambda i: stop in self.policy.decode(tokens[: i + 1])
                ), "stop"
        return len(tokens), "length"
