"""Every range and cross-field rule refuses what it should, and lets through what stands right beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from grpo.config import RunConfig
from grpo.config.checks import check
from grpo.config.parse import build
from grpo.errors import ConfigError

MINIMAL = {"model_name_or_path": "m", "dataset_name": "d", "reward_funcs": ["accuracy"], "output_dir": "o"}


def valid() -> RunConfig:
    return build(RunConfig, MINIMAL)


# One line per rule: owner, what is wrong, the key that the message names.
WRONG = [
    ("sampling", {"num_generations": 1}, "num_generations: got 1; allowed: at least 2"),
    ("batch", {"problems_per_rollout": 0}, "problems_per_rollout"),
    ("correction", {"vllm_importance_sampling_clip_max": 0.0}, "vllm_importance_sampling_clip_max"),
    ("correction", {"vllm_importance_sampling_clip_max": None}, "a number under token_truncate"),
    ("correction", {"vllm_importance_sampling_clip_min": 3.0}, "null, or below vllm_importance_sampling_clip_max = 3"),
    ("correction", {"off_policy_mask_threshold": -0.5}, "off_policy_mask_threshold"),
    ("sampling", {"sampler": "vllm", "top_p": 0.9}, "top_p: got 0.9; allowed: 1, for training with sampler: vllm"),
    ("sampling", {"min_completion_length": -1}, "min_completion_length"),
    ("sampling", {"min_completion_length": 9, "max_completion_length": 8}, "min_completion_length: got 9"),
    ("sampling", {"max_completion_length": 0}, "max_completion_length"),
    ("sampling", {"rows_per_forward": 0}, "rows_per_forward"),
    ("sampling", {"temperature": 0.0}, "temperature"),
    ("sampling", {"temperature": float("nan")}, "temperature"),
    ("sampling", {"top_p": 1.5}, "top_p"),
    ("sampling", {"top_p": 0.0}, "top_p"),
    ("sampling", {"top_k": -1}, "top_k"),
    ("sampling", {"min_p": 1.1}, "min_p"),
    ("sampling", {"repetition_penalty": 0.0}, "repetition_penalty"),
    ("sampling", {"stop_strings": ["x", ""]}, "stop_strings"),
    ("data", {"system_prompt": "x", "prompt_template": "r1_zero"}, "prompt_template"),
    ("data", {"max_prompt_length": 0}, "max_prompt_length"),
    ("rewards", {"reward_funcs": []}, "reward_funcs"),
    ("rewards", {"reward_weights": [1.0, 2.0]}, "reward_weights"),
    ("rewards", {"reward_timeout": 0.0}, "reward_timeout"),
    ("rewards", {"reward_sample_timeout": -1.0}, "reward_sample_timeout"),
    ("rewards", {"reward_error_limit": 5.0}, "a share from 0 to 1"),
    ("rewards", {"reward_weights": [0.0]}, "at least one weight above 0"),
    ("rewards", {"reward_weights": [float("inf")]}, "reward_weights"),
    ("rewards", {"reward_weights": [-1.0]}, "reward_weights"),
    ("adapter", {"lora_r": 0}, "lora_r"),
    ("adapter", {"lora_alpha": 0}, "lora_alpha"),
    ("adapter", {"lora_dropout": 1.0}, "lora_dropout"),
    ("loss", {"epsilon": 0.0}, "epsilon"),
    ("loss", {"epsilon": float("inf")}, "epsilon"),
    ("loss", {"epsilon_high": -0.1}, "epsilon_high"),
    ("loss", {"beta": -0.1}, "beta"),
    ("loss", {"beta": float("nan")}, "beta"),
    ("loss", {"delta": 1.2}, "delta"),
    ("loss", {"delta": 1.25, "epsilon_high": 0.28}, "above 1 + epsilon_high = 1.28"),
    ("loss", {"loss_type": "cispo"}, "epsilon_high: got None"),
    ("loss", {"loss_type": "cispo", "epsilon_high": 0.28}, "epsilon_high: got 0.28"),
    ("loss", {"loss_type": "cispo", "epsilon_high": 5.0, "delta": 9.0}, "delta"),
    (
        "loss",
        {"loss_type": "cispo", "epsilon_high": 5.0, "importance_sampling_level": "sequence"},
        "importance_sampling_level",
    ),
    ("optim", {"learning_rate": 0.0}, "learning_rate"),
    ("optim", {"learning_rate": float("inf")}, "learning_rate"),
    ("optim", {"max_grad_norm": -1.0}, "max_grad_norm"),
    ("optim", {"adam_epsilon": 0.0}, "adam_epsilon"),
    ("optim", {"weight_decay": -1.0}, "weight_decay"),
    ("optim", {"adam_beta1": 1.0}, "adam_beta1"),
    ("optim", {"adam_beta2": -0.1}, "adam_beta2"),
    ("optim", {"warmup_steps": -1}, "warmup_steps"),
    ("optim", {"warmup_steps": 1.5}, "warmup_steps"),
    ("optim", {"lr_scheduler_type": "cosinus"}, "lr_scheduler_type"),
    ("optim", {"max_steps": 0}, "max_steps"),
    ("optim", {"max_steps": -2}, "max_steps"),
    ("optim", {"num_train_epochs": 0.0}, "num_train_epochs"),
    ("batch", {"num_minibatches": 0}, "num_minibatches"),
    ("batch", {"num_minibatches": 32 * 16 + 1}, "at most problems_per_rollout x num_generations = 512"),
    ("batch", {"num_iterations": 0}, "num_iterations"),
    ("batch", {"max_tokens_per_microbatch": 0}, "max_tokens_per_microbatch"),
    ("selection", {"max_num_gen_batches": 0}, "max_num_gen_batches: got 0; allowed: at least 1"),
    ("selection", {"retire_solved_at": 0.0}, "retire_solved_at"),
    ("selection", {"retire_solved_at": 90}, "retire_solved_at: got 90; allowed: null, or a share above 0"),
    ("reference", {"ref_model_sync_steps": 0}, "ref_model_sync_steps"),
    ("reference", {"ref_model_mixup_alpha": 1.1}, "ref_model_mixup_alpha"),
    ("reference", {"ref_model_mixup_alpha": 0.0}, "ref_model_mixup_alpha"),
    ("eval", {"eval_steps": -1}, "eval_steps"),
    ("eval", {"eval_problems": 0}, "eval_problems"),
    ("eval", {"eval_samples": 0}, "eval_samples"),
    ("eval", {"eval_temperature": 0.0}, "eval_temperature"),
    ("eval", {"eval_top_p": 2.0}, "eval_top_p"),
    ("eval", {"eval_seed": -1}, "eval_seed"),
    ("output", {"save_total_limit": 1}, "save_total_limit"),
    ("output", {"stop_grace_seconds": -1}, "stop_grace_seconds"),
    (
        "optim",
        {"lr_scheduler_type": "cosine_with_min_lr"},
        "lr_scheduler_kwargs: got {}; allowed: min_lr or min_lr_rate",
    ),
    (
        "optim",
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"min_lr": 0}},
        "allowed: num_decay_steps",
    ),
    ("output", {"save_steps": -1}, "save_steps"),
    ("output", {"save_steps": 1.5}, "save_steps"),
    ("output", {"logging_steps": 0}, "logging_steps"),
    ("output", {"seed": -1}, "seed"),
    ("output", {"report_to": ["wandb", "mlflow"]}, "report_to: got ['mlflow']"),
    ("output", {"output_dir": " "}, "output_dir"),
]


@pytest.mark.parametrize(("owner", "changes", "message"), WRONG)
def test_what_cannot_run_is_refused(owner: str, changes: dict[str, Any], message: str) -> None:
    cfg = valid()
    check(cfg)
    wrong = replace(cfg, **{owner: replace(getattr(cfg, owner), **changes)})
    with pytest.raises(ConfigError) as error:
        check(wrong)
    assert message in str(error.value) and "; allowed: " in str(error.value)


def test_all_faults_are_reported_at_once() -> None:
    cfg = build(RunConfig, MINIMAL | {"num_generations": 1, "top_p": 2, "seed": -1})
    with pytest.raises(ConfigError) as error:
        check(cfg)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["num_generations", "top_p", "seed"]


MODE, MOST, LEAST = (f"vllm_importance_sampling_{knob}" for knob in ("mode", "clip_max", "clip_min"))


@pytest.mark.parametrize(
    ("owner", "right", "beside"),
    [
        ("loss", {"delta": 1.3}, {"delta": 1.2}),
        ("loss", {"loss_type": "cispo", "epsilon_high": 5.0}, {"epsilon_high": 0.28}),
        ("loss", {"importance_sampling_level": "sequence", "epsilon": 3e-4}, {"epsilon": 0.0}),
        ("correction", {MODE: "token_mask", MOST: None}, {MODE: "token_truncate"}),
        ("correction", {MOST: None, LEAST: 0.5}, {LEAST: None}),
        ("sampling", {"min_completion_length": 8, "max_completion_length": 8}, {"min_completion_length": 9}),
        ("optim", {"warmup_steps": 0.1}, {"warmup_steps": 1.1}),
        ("optim", {"max_steps": 5, "num_train_epochs": 0.0}, {"max_steps": -1}),
        ("batch", {"num_minibatches": 512}, {"num_minibatches": 513}),
        ("output", {"save_steps": 0.05}, {"save_steps": 1.05}),
        ("data", {"system_prompt": "x"}, {"prompt_template": "r1_zero"}),
        ("rewards", {"reward_weights": [0.5]}, {"reward_weights": [0.5, 0.5]}),
    ],
)
def test_what_can_run_is_let_through_but_not_what_stands_beside_it(
    owner: str, right: dict[str, Any], beside: dict[str, Any]
) -> None:
    cfg = valid()
    part = replace(getattr(cfg, owner), **right)
    check(replace(cfg, **{owner: part}))
    with pytest.raises(ConfigError):
        check(replace(cfg, **{owner: replace(part, **beside)}))


def test_every_scheduler_is_one_of_transformers() -> None:
    import torch
    from transformers import get_scheduler

    from grpo.config.checks import SCHEDULERS

    needs = {"cosine_with_min_lr": {"min_lr_rate": 0.1}, "warmup_stable_decay": {"num_decay_steps": 3}}
    for name in SCHEDULERS:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_scheduler(
            name, optimizer, num_warmup_steps=2, num_training_steps=9, scheduler_specific_kwargs=needs.get(name, {})
        )
        for _ in range(9):
            optimizer.step()
            schedule.step()
        assert 0 <= schedule.get_last_lr()[0] <= 1
