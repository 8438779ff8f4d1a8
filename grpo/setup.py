"""From a config to the parts of a run: problems, policy, optimizer, schedule, rewards, sampler."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch

from data.fingerprint import fingerprint
from data.mixture import Mixture
from data.problem import Problem
from data.report import LoadedProblems
from data.sources import load_problems
from grpo.checkpoint.store import Checkpoint
from grpo.config import DataConfig, EntryConfig, OptimConfig, RunConfig, SourceConfig
from grpo.config.mixture import sources, weights
from grpo.config.parse import write_config
from grpo.config.schedule import stages
from grpo.distributed import Dist
from grpo.errors import ConfigError
from grpo.files import write_json_atomic
from grpo.learner import Learner
from grpo.policy.export import load_adapter
from grpo.policy.load import Policy, encode_prompt, load_policy, routers
from grpo.policy.reference import Reference
from grpo.policy.template import frame_of
from grpo.prompts import prompt_lengths, require_room, room_notes, short_enough
from grpo.routing import routing
from grpo.sampling.choose import build_sampler
from grpo.sampling.protocol import Sampler
from grpo.sampling.vllm.sampler import VllmSampler
from grpo.sharding import shard
from grpo.signals import StopRequest
from rewards.rubric import Rubric

LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "sympy", "reasoning-gym", "numpy")


@dataclass(frozen=True, kw_only=True)
class Problems:
    """What a run trains and is tested on, the sources one after another; `notes` are the loaders' reports for a person.

    mixture: which of `train` a rollout holds. weights: the sources', as configured; None where their sizes decide.
    """

    train: list[Problem]
    test: list[Problem]
    notes: list[str]
    mixture: Mixture
    weights: Sequence[float] | None = None

    @classmethod
    def of(
        cls, cfg: DataConfig, train: Sequence[list[Problem]], test: Sequence[list[Problem]], notes: list[str]
    ) -> Problems:
        """`train` and `test`: one list per source."""
        given = weights(cfg)
        return cls(
            train=[problem for source in train for problem in source],
            test=[problem for source in test for problem in source],
            notes=notes,
            mixture=Mixture.of([len(source) for source in train], given),
            weights=given,
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the training problems, in order, and of the weights."""
        return fingerprint(self.train, self.weights)

    def first(self, count: int) -> list[Problem]:
        """The first few training problems of every source."""
        starts = accumulate((0, *self.mixture.sizes[:-1]))
        ends = accumulate(self.mixture.sizes)
        return [p for start, end in zip(starts, ends, strict=True) for p in self.train[start : min(start + count, end)]]


def load_data(cfg: RunConfig, tokenizer: Any, rubric: Rubric) -> Problems:
    """Train problems, and held-out ones where evaluation is asked for. Prompts over `max_prompt_length` are dropped and
    counted, others without room for a completion are refused; a row whose gold answer the rewards cannot use is a bad
    row; a task that no reward is for is refused."""
    notes: list[str] = []
    train = load_sources(cfg.data, "train", tokenizer, rubric, notes)
    wants_eval = cfg.eval.eval_steps or cfg.eval.eval_on_start or cfg.eval.eval_on_end
    test = load_sources(cfg.data, "test", tokenizer, rubric, notes) if wants_eval else []
    if wants_eval and not test:
        raise ConfigError("evaluation is on but `dataset_test_split` is not set")
    problems = Problems.of(cfg.data, train, evenly(test, cfg.eval.eval_problems), notes)
    parts = [stage.cfg for stage in stages(cfg, total_updates(cfg, len(problems.train)))]
    require_room(cfg.model, [part.sampling for part in parts], [*problems.train, *problems.test], tokenizer)
    longest = max(parts, key=lambda part: part.sampling.max_completion_length)
    notes += room_notes(longest, prompt_lengths(problems.train, tokenizer))
    notes += routing(cfg, train, rubric) if rubric.functions else []
    if any(problem.think_opened for problem in problems.train):
        notes.append("the prompt opens <think>: rewards see completions that begin with it")
    return problems


def evenly(sources: Sequence[list[Problem]], most: int) -> list[list[Problem]]:
    """The first problems of every source, together at most `most`, as many of each as can be."""
    kept: list[list[Problem]] = []
    for left, source in zip(range(len(sources), 0, -1), sorted(sources, key=len), strict=True):
        kept.append(source[: (most - sum(map(len, kept))) // left])
    return kept


def opens_thinking(problem: Problem, tokenizer: Any) -> bool:
    """Whether the prompt, as the model sees it, ends with `<think>`; one template renders all prompts of a source.
    Raises ConfigError where that is a chat template without a generation prompt."""
    if not isinstance(problem.prompt, str):
        frame_of(tokenizer)
    return tokenizer.decode(encode_prompt(tokenizer, problem.prompt)).rstrip().endswith("<think>")


def load_sources(
    cfg: DataConfig, part: Literal["train", "test"], tokenizer: Any, rubric: Rubric, notes: list[str]
) -> list[list[Problem]]:
    """The problems of every source that has such a split. What became of the rows is added to `notes`."""
    found = ((source, getattr(source, f"dataset_{part}_split")) for source in sources(cfg))
    return [_usable(source, split, cfg, tokenizer, rubric, notes) for source, split in found if split is not None]


def load_source(source: SourceConfig, split: str, **more: Any) -> LoadedProblems:
    """One split of a source. `more`: as for `data.sources.load_problems`, which raises DataError."""
    return load_problems(
        str(source.dataset_name),
        config=source.dataset_config,
        split=split,
        kwargs=source.dataset_kwargs,
        prompt_column=source.dataset_prompt_column,
        answer_column=source.dataset_answer_column,
        template=source.prompt_template,
        system_prompt=source.system_prompt,
        filter_path=source.dataset_filter,
        **more,
    )


def _usable(
    source: EntryConfig, split: str, cfg: DataConfig, tokenizer: Any, rubric: Rubric, notes: list[str]
) -> list[Problem]:
    loaded = load_source(
        source,
        split,
        task=source.task,
        allow_bad_rows=cfg.allow_bad_rows,
        refuse=lambda problem: rubric.gold_problem(problem.columns, problem.task),
    )
    notes.append(str(loaded.report))
    problems = loaded.problems[: math.ceil(source.keep * len(loaded.problems))]
    if opens_thinking(problems[0], tokenizer):
        problems = [replace(problem, think_opened=True) for problem in problems]
    if cfg.max_prompt_length is not None:
        problems = short_enough(problems, cfg.max_prompt_length, split, tokenizer, notes)
    return problems


def build_policy(cfg: RunConfig, dist: Dist, checkpoint: Checkpoint | None) -> Policy:
    """The policy on this process's device, with the checkpoint's weights where there is one, sharded if asked for (then
    every process loads the model into CPU memory first)."""
    model_cfg, adapter = cfg.model, cfg.adapter
    if checkpoint is not None and not adapter.use_peft:
        model_cfg = replace(model_cfg, model_name_or_path=str(checkpoint.path), init_random=False)
    policy = load_policy(model_cfg, adapter, device=dist.device, seed=cfg.output.seed, sharded=dist.sharded)
    if checkpoint is not None and adapter.use_peft:
        load_adapter(policy, checkpoint.path)
    if dist.sharded:
        low_precision = policy.compute_dtype != torch.float32
        in_fp32 = routers(policy.network) if low_precision else ()
        shard(policy.network, device=dist.device, compute_dtype=policy.compute_dtype, in_fp32=in_fp32)
    return policy


def build_learner(
    cfg: RunConfig, policy: Policy, rubric: Rubric, dist: Dist, total_updates: int, stop: StopRequest | None = None
) -> Learner:
    """The policy with what trains it; the optimizer is torch's AdamW, the schedule one of transformers'."""
    from transformers import get_scheduler

    stop = stop or StopRequest(dist)
    optim = cfg.optim
    optimizer = torch.optim.AdamW(
        policy.trainable().values(),
        lr=optim.learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_epsilon,
        weight_decay=optim.weight_decay,
    )
    try:
        scheduler = get_scheduler(
            optim.lr_scheduler_type,
            optimizer,
            num_warmup_steps=warmup_updates(optim, total_updates),
            num_training_steps=total_updates,
            scheduler_specific_kwargs=optim.lr_scheduler_kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"lr_scheduler_kwargs: got {optim.lr_scheduler_kwargs!r}; allowed: what the schedule "
            f"{optim.lr_scheduler_type} takes ({error})"
        ) from error
    return Learner(
        policy=policy,
        sampler=_training_sampler(policy, cfg, dist, stop),
        rubric=rubric,
        optimizer=optimizer,
        scheduler=scheduler,
        reference=Reference(policy) if cfg.loss.beta > 0 else None,
        cfg=cfg,
        dist=dist,
        stop=stop,
    )


def under(learner: Learner, cfg: RunConfig) -> Learner:
    """The same learner with the settings of another part of the run's schedule."""
    sampler = learner.sampler
    if isinstance(sampler, VllmSampler):  # its servers, and the weights that they hold, stay
        sampler = copy(sampler)
        sampler.cfg = cfg.sampling
    else:
        sampler = _training_sampler(learner.policy, cfg, learner.dist, learner.stop)
    return replace(learner, cfg=cfg, sampler=sampler, rubric=learner.rubric.reweighted(cfg.rewards.reward_weights))


def _training_sampler(policy: Policy, cfg: RunConfig, dist: Dist, stop: StopRequest) -> Sampler:
    seed = cfg.output.seed
    return build_sampler(policy, cfg.sampling, seed=seed, dist=dist, between_steps=stop.poll, keep_masks=True)


def warmup_updates(optim: OptimConfig, total_updates: int) -> int:
    """`warmup_steps` in updates; a number below 1 is a share of all updates, as in transformers."""
    share = 0 < optim.warmup_steps < 1
    return math.ceil(optim.warmup_steps * total_updates) if share else int(optim.warmup_steps)


def total_updates(cfg: RunConfig, num_problems: int) -> int:
    """`max_steps`, or what `num_train_epochs` over the problems comes to; a last, partly filled rollout counts."""
    if cfg.optim.max_steps > 0:
        return cfg.optim.max_steps
    epochs = Fraction(str(cfg.optim.num_train_epochs))  # 1.1 x 100 is 110, not a little more
    rollouts = math.ceil(epochs * num_problems / cfg.batch.problems_per_rollout)
    return rollouts * cfg.updates_per_rollout


def write_run_folder(run_dir: Path, cfg: RunConfig, problems: Problems, dist: Dist) -> None:
    """`config.yaml` and `environment.json` of the run's latest start, before the first step."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_config(run_dir / "config.yaml", cfg)
    environment = {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processes": dist.world,
        "device": str(dist.device),
        "git_commit": git_commit(),
        "train_problems": len(problems.train),
        "train_fingerprint": problems.fingerprint,
        "test_problems": len(problems.test),
    }
    write_json_atomic(run_dir / "environment.json", environment)


def versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this source tree, with `+changes` where files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[1]
    answer = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes"], cwd=root, capture_output=True, text=True
    )
    return answer.stdout.strip() or None
