"""`--dry_run`: everything a run would load except the weights, what it would do, and what it would cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from data.problem import Problem
from grpo.config import ModelConfig, RunConfig, presets
from grpo.config.parse import config_text
from grpo.config.schedule import stages
from grpo.config.translate import KeyReport
from grpo.monitor.text import visible
from grpo.plan import ModelShape, Plan, make_plan, over_schedule, plan_lines, shape_of
from grpo.policy.load import (
    encode_prompt,
    load_generation_config,
    load_model_config,
    load_tokenizer,
    stop_token_ids,
)
from grpo.prompts import prompt_lengths
from grpo.scoring import build_rubric, score_groups
from grpo.setup import load_data, total_updates
from grpo.types import Rollout, RolloutGroup
from rewards.doctor import examine, in_format
from rewards.rubric import Rubric

GOLD_ANSWERS = 8


def dry_run(cfg: RunConfig, report: KeyReport) -> None:
    """Print keys, resolved config, one prompt, the rewards of gold answers, batch arithmetic and estimates.

    Writes nothing. Raises what the real run would raise for data, tokenizer, model config and rewards. Of several
    processes the first one does it.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    _section("keys", [str(report), *presets.fill(report.native)[1]])
    _section("config", [config_text(cfg)])
    tokenizer = load_tokenizer(cfg.model)
    rewards = cfg.rewards
    rubric = build_rubric(rewards) if rewards.reward_funcs else Rubric(())
    problems = load_data(cfg, tokenizer, rubric)
    model = meta_model(cfg.model)
    _section("data", problems.notes)
    stops = stop_token_ids(tokenizer, model.generation_config)
    for problem in problems.first(1):
        _section("first prompt", prompt_lines(problem, tokenizer, stops, cfg))
    _section("rewards of gold answers", reward_lines(rubric, problems.first(GOLD_ANSWERS), tokenizer))
    _section("rewards tried", examine(rubric, problems.train).lines() if rubric.functions else [])
    _section("plan", plan_lines(*estimate(cfg, model, problems.train, tokenizer), cfg))


def estimate(cfg: RunConfig, model: nn.Module, problems: Sequence[Problem], tokenizer: Any) -> tuple[Plan, ModelShape]:
    """The plan of a run, for `--dry_run` and for the banner. `model`: see `meta_model`; prompts are measured on the
    first few hundred problems."""
    shape, lengths = shape_of(model, cfg.adapter), prompt_lengths(problems, tokenizer)
    total = total_updates(cfg, len(problems))
    found = stages(cfg, total)
    plans = [
        make_plan(
            stage.cfg,
            shape,
            lengths,
            total_updates=total,
            num_processes=int(os.environ.get("WORLD_SIZE", "1")),
            bf16=cfg.model.dtype == "bfloat16" or (cfg.model.dtype == "auto" and torch.cuda.is_available()),
        )
        for stage in found
    ]
    return over_schedule(plans, found), shape


def meta_model(cfg: ModelConfig) -> nn.Module:
    """The model's structure without its weights: no memory, no download of anything but the config."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            load_model_config(cfg),
            attn_implementation=cfg.attn_implementation,
            trust_remote_code=cfg.trust_remote_code,
        )
    model.generation_config = load_generation_config(cfg)
    return model


def prompt_lines(problem: Problem, tokenizer: Any, stops: Sequence[int], cfg: RunConfig) -> list[str]:
    """The prompt as the model sees it, and every token and text that ends a completion."""
    ids = encode_prompt(tokenizer, problem.prompt)
    names = [f"{stop} {tokenizer.convert_ids_to_tokens(stop)!r}" for stop in stops]
    return [
        visible(tokenizer.decode(ids)),
        f"--- {len(ids)} tokens, problem {problem.id}, gold answer {problem.answer!r}",
        f"stop tokens: {', '.join(names)}; stop strings: {cfg.sampling.stop_strings or 'none'}",
    ]


def reward_lines(rubric: Rubric, problems: Sequence[Problem], tokenizer: Any) -> list[str]:
    """What the rewards give the gold answer of each problem, written in R1's format."""
    from transformers import TrainerState

    if not rubric.functions:
        return ["no reward of this config exists yet"]
    groups = [_gold_group(problem, tokenizer) for problem in problems]
    scored, _ = score_groups(groups, rubric, trainer_state=TrainerState(), step=0)
    lines = []
    for group in scored:
        parts = ", ".join(f"{name} {values[0]}" for name, values in group.parts.items())
        answer = visible(group.group.problem.answer)
        lines.append(f"{group.group.problem.id}: answer {answer!r} -> reward {group.rewards_G[0]:g} ({parts})")
    return lines


def _gold_group(problem: Problem, tokenizer: Any) -> RolloutGroup:
    text = in_format(problem.answer)
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    rollout = Rollout(
        prompt_ids=tuple(encode_prompt(tokenizer, problem.prompt)),
        completion_ids=ids,
        sampler_logprobs=(0.0,) * len(ids),
        text=text,
        stop_reason="eos",
    )
    return RolloutGroup(problem=problem, rollouts=(rollout,))


def _section(title: str, lines: Sequence[str]) -> None:
    print(f"=== {title}", *lines, "", sep="\n")
