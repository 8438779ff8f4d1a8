"""On-policy distillation: the student answers, and learns the teacher's distribution at every place of its own answer.

    accelerate launch -m recipes.distill_on_policy --config recipes/configs/tiny_v3/pipeline/distill_on_policy.yaml

The loss is the divergence between the two distributions over the whole vocabulary, by default the reverse KL
(Agarwal et al. 2024, arXiv 2306.13649), so teacher and student need the same tokens; where they differ, distil by SFT.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from grpo.checkpoint.runlock import RunLock
from grpo.config import AdapterConfig, DataConfig, ModelConfig, SamplingConfig
from grpo.distributed import Dist
from grpo.errors import ConfigError
from grpo.policy.load import Policy, load_policy, require_model
from grpo.prompts import require_room
from grpo.sampling.choose import build_sampler
from grpo.setup import Problems, load_sources
from recipes.command import exit_code, write_report
from recipes.lineage import problem_inputs, write_lineage
from recipes.tuning.sft import R1_SCHEDULE
from recipes.tuning.trainer_keys import TrainerRun, parse_with_trainer, trl
from recipes.tuning.trainer_run import (
    MetricsCallback,
    TunedOutputConfig,
    export,
    load_student,
    resume_point,
    settings,
    this_process,
    trainer_arguments,
    whole_weights,
    write_start,
)
from rewards.rubric import Rubric

STAGE = "distill_on_policy"
DEFAULTS = {
    **R1_SCHEDULE,
    "num_train_epochs": 1,
    "learning_rate": 1e-5,
    "num_generations": 1,
    "dataset_answer_column": None,  # the target is the teacher's distribution, no gold answer
}
METRICS = {
    "loss": "divergence",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "completions/mean_length": "completions/mean_length",
    "completions/clipped_ratio": "completions/clipped_ratio",
}


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """`model` is the student. Every key of `trl.DistillationConfig` may stand beside these, `beta` among them."""

    model: ModelConfig
    adapter: AdapterConfig
    data: DataConfig
    sampling: SamplingConfig
    output: TunedOutputConfig
    teacher_model_name_or_path: str  # a folder in Hugging Face format, or a Hub id; with the student's tokens
    teacher_model_revision: str = "main"  # branch, tag or commit of a Hub teacher

    def __post_init__(self) -> None:
        if self.sampling.num_generations != 1:
            raise ConfigError(
                f"num_generations: got {self.sampling.num_generations}; allowed: 1, for the teacher judges every token "
                "of every answer, without a group to compare it with"
            )

    @property
    def teacher(self) -> ModelConfig:
        return ModelConfig(
            model_name_or_path=self.teacher_model_name_or_path,
            model_revision=self.teacher_model_revision,
            dtype=self.model.dtype,
            attn_implementation=self.model.attn_implementation,
            trust_remote_code=self.model.trust_remote_code,
        )


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: distill(parse(given)))


def parse(argv: Sequence[str]) -> TrainerRun:
    return parse_with_trainer(argv, OnPolicyConfig, trl().DistillationConfig, DEFAULTS)


def distill(run: TrainerRun) -> int:
    """Train as the run says; the student ends up in `<output_dir>/final`. Raises ConfigError, DataError,
    CheckpointError before any weights are loaded."""
    cfg: OnPolicyConfig = run.config
    refuse_shards(os.environ)
    run_dir, dist, began = Path(cfg.output.output_dir), this_process(), time.perf_counter()
    with dist.entered_by_main(RunLock(run_dir)):
        tokenizer = require_model(cfg.model)
        require_same_tokens(tokenizer, require_model(cfg.teacher), cfg.teacher_model_name_or_path)
        problems = problems_of(cfg.data, tokenizer)
        require_room(cfg.model, [cfg.sampling], problems.train, tokenizer)
        what = settings(cfg, run.trainer, problems=problems.fingerprint, processes=dist.world)
        checkpoint = resume_point(cfg.output, what, dist)
        if dist.is_main:
            print("\n".join((*run.notes, *problems.notes)), flush=True)
        if cfg.output.dry_run:
            return 0
        policy = load_student(cfg.model, cfg.adapter, checkpoint, dist=dist, seed=cfg.output.seed)
        trainer = build_trainer(run, policy, frozen_teacher(cfg, policy, dist), problems, dist)
        if dist.is_main:
            write_start(run_dir, cfg, run.trainer, what)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        weights = whole_weights(trainer)
        if dist.is_main:
            finish(run, export(policy, run_dir, weights), len(problems.train), time.perf_counter() - began)
        dist.barrier()
    return 0


def refuse_shards(env: Mapping[str, str]) -> None:
    """Raises ConfigError where the launcher shards the student's weights, which the sampler needs whole."""
    for name in ("FSDP", "DEEPSPEED"):
        if env.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise ConfigError(f"the launch file asks for {name}; allowed here: recipes/accelerate/cpu.yaml or ddp.yaml")


def require_same_tokens(student: Any, teacher: Any, name: str) -> None:
    """Raises ConfigError where a token's number means another text to the teacher."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        raise ConfigError(
            f"teacher_model_name_or_path: {name} has other tokens than the student: {len(differing):,} differ, "
            f"{', '.join(map(repr, differing[:3]))} among them. Its distribution says nothing about the student's "
            "tokens: take a teacher of the student's family, or distil by SFT on its traces (recipes.distill)"
        )


def problems_of(cfg: DataConfig, tokenizer: Any) -> Problems:
    notes: list[str] = []
    return Problems.of(cfg, load_sources(cfg, "train", tokenizer, Rubric(()), notes), (), notes)


def frozen_teacher(cfg: OnPolicyConfig, student: Policy, dist: Dist) -> torch.nn.Module:
    """The teacher in the type that it computes in. Where its embeddings are padded with more unused rows than the
    student's (Qwen2.5's sizes differ so), they are cut to the student's."""
    teacher = load_policy(cfg.teacher, AdapterConfig(), device=dist.device, sharded=True).model
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(student.compute_dtype)
    ours, theirs = (m.config.get_text_config().vocab_size for m in (student.network, teacher))
    if theirs < ours:
        raise ConfigError(
            f"teacher_model_name_or_path: {cfg.teacher_model_name_or_path} has {theirs} embeddings, the student "
            f"{ours}: it has no probability for the student's last ones. Take another teacher, or distil by SFT"
        )
    if theirs > ours:
        teacher.resize_token_embeddings(ours)
    return teacher.eval()


def build_trainer(run: TrainerRun, policy: Policy, teacher: torch.nn.Module, problems: Problems, dist: Dist) -> Any:
    from datasets import Dataset

    from recipes.tuning.on_policy_trainer import OnPolicyTrainer

    cfg: OnPolicyConfig = run.config
    args = trainer_arguments(
        trl().DistillationConfig,
        run,
        policy,
        max_completion_length=cfg.sampling.max_completion_length,
        temperature=cfg.sampling.temperature,
        shuffle_dataset=False,
    )
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * dist.world
    if args.max_steps <= 0:
        args.max_steps = math.ceil(args.num_train_epochs * len(problems.train) / rows)
    order = list(islice(problems.mixture.stream(0, cfg.output.seed), args.max_steps * rows))
    if dist.is_main:
        print(f"{args.max_steps} updates of {rows} answers each, on {len(problems.train):,} problems", flush=True)
    return OnPolicyTrainer(
        problems=problems.train,
        sampler=build_sampler(
            policy, cfg.sampling, seed=cfg.output.seed, dist=Dist(device=dist.device), between_steps=lambda: None
        ),
        model=policy.model,
        teacher_model=teacher,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": order}),
        processing_class=policy.tokenizer,
        callbacks=[MetricsCallback(Path(cfg.output.output_dir), METRICS, dist)],
    )


def finish(run: TrainerRun, final: Path, num_problems: int, seconds: float) -> None:
    cfg: OnPolicyConfig = run.config
    models = {"model": cfg.model.model_name_or_path, "teacher": cfg.teacher_model_name_or_path}
    write_lineage(
        cfg.output.output_dir,
        stage=STAGE,
        inputs={**models, **problem_inputs(cfg.data)},
        config=settings(cfg, run.trainer),
        seconds=seconds,
        counts={"problems": num_problems},
    )
    print(f"the student is in {final}", flush=True)
    write_report(Path(cfg.output.output_dir))


if __name__ == "__main__":
    sys.exit(main())
