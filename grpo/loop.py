"""The run: build or resume, then rollout after rollout until the updates are done; log, evaluate, save, stop cleanly.

Checkpoints are written at rollout boundaries only, when no sampled batch is waiting: a kill inside a sequence of
minibatches resumes from the last boundary and does the sequence again, with the same draws and so the same result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.fingerprint import fingerprint
from data.order import problems_of_rollout
from grpo import checkpoint as checkpoints
from grpo.checkpoint import Checkpoint
from grpo.completions import rewind_completions, write_completions
from grpo.config import RunConfig, in_updates
from grpo.distributed import Dist, start
from grpo.dry_run import estimate_lines, meta_model
from grpo.errors import CheckpointError, ConfigError, NonFiniteUpdateError
from grpo.evaluation import evaluate
from grpo.journal import Journal, write_rejected
from grpo.metrics import MetricsLog
from grpo.parse import to_flat
from grpo.policy.load import load_tokenizer
from grpo.progress import Progress
from grpo.runlock import RunLock
from grpo.setup import Problems, build_learner, build_policy, load_data, total_updates, versions, write_run_folder
from grpo.signals import StopRequest, stop_requests
from grpo.stats import UpdateStats
from grpo.step import Learner, RolloutResult, timed, training_step
from grpo.trackers import log_to_trackers, start_trackers, tracker_names
from grpo.training_state import SAME_EXPERIENCE, Position, capture, export_policy, gather_weights, restore
from rewards.reward import Verdict
from rewards.rubric import Rubric

MAX_SKIPPED_IN_ROW = 3


def run(cfg: RunConfig, *, notes: Sequence[str] = ()) -> int:
    """Train as the config says; returns the process's exit code: 0, or 143 / 130 after SIGTERM / SIGINT.

    Raises ConfigError, DataError, RewardError, CheckpointError, NonFiniteUpdateError; see grpo/errors.py.
    """
    run_dir = Path(cfg.output.output_dir)
    dist, accelerator = start(log_with=tracker_names(cfg.output.report_to), project_dir=str(run_dir))
    with stop_requests() as stop, RunLock(run_dir) if dist.is_main else nullcontext():
        training = Training.build(cfg, run_dir, dist, accelerator, stop)
        training.announce(notes)
        try:
            training.train()
        finally:
            training.close()
        return 128 + training.stop.signum if training.stopped else 0


@dataclass
class Training:
    """A run in progress: the learner, where it stands, and where it writes."""

    cfg: RunConfig
    run_dir: Path
    dist: Dist
    accelerator: Any
    stop: StopRequest
    learner: Learner
    problems: Problems
    total: int
    position: Position
    trainer_state: Any
    progress: Progress
    stopped: bool = False

    @classmethod
    def build(cls, cfg: RunConfig, run_dir: Path, dist: Dist, accelerator: Any, stop: StopRequest) -> Training:
        """Everything that can be refused is refused here, before the first sample."""
        from transformers import TrainerState

        rubric = Rubric.from_config(cfg.rewards.reward_funcs, cfg.rewards.reward_weights)
        problems = load_data(cfg, load_tokenizer(cfg.model))
        rubric.check_columns(problems.train[0].columns)
        total = total_updates(cfg, len(problems.train))
        saved = find_resume_point(cfg, run_dir, dist)
        policy = build_policy(cfg, dist, saved)
        learner = build_learner(cfg, policy, rubric, dist, total)
        position = Position()
        if saved is not None:
            check_same_run(saved, cfg, problems)
            position = restore(learner, saved)
        training = cls(
            cfg=cfg,
            run_dir=run_dir,
            dist=dist,
            accelerator=accelerator,
            stop=stop,
            learner=learner,
            problems=problems,
            total=total,
            position=position,
            trainer_state=TrainerState(global_step=position.update, max_steps=total),
            progress=Progress(
                total,
                done_updates=position.update,
                logging_steps=cfg.output.logging_steps,
                disable=not dist.is_main,
            ),
        )
        training.open_folder(saved)
        return training

    def open_folder(self, saved: Checkpoint | None) -> None:
        """Write what the run is, and take back what a killed run logged after its last checkpoint."""
        if not self.dist.is_main:
            return
        if saved is None:
            write_run_folder(self.run_dir, self.cfg, self.problems, self.dist)
        for log in (MetricsLog(self.run_dir), Journal(self.run_dir)):
            log.rewind(self.position.update)
        rewind_completions(self.run_dir, self.position.update)
        start_trackers(
            self.accelerator,
            project=os.environ.get("WANDB_PROJECT", "grpo"),
            run_name=self.cfg.output.run_name or self.run_dir.name,
            run_dir=self.run_dir,
            config=to_flat(self.cfg),
            done_updates=self.position.update,
        )
        if saved is not None:
            self.progress.write(f"resumed from {saved.path}: update {self.position.update} of {self.total}")

    def announce(self, notes: Sequence[str]) -> None:
        """The banner: `notes` of the parser, what became of the data, and what the run will do and cost."""
        if not self.dist.is_main:
            return
        tokenizer = self.learner.policy.tokenizer
        plan = estimate_lines(self.cfg, meta_model(self.cfg.model), self.problems.train, tokenizer)
        for line in [*notes, *self.problems.notes, *self.learner.rubric.announcements(), *plan]:
            self.progress.write(line)

    def train(self) -> None:
        """Rollouts until the updates are done or somebody asked to stop."""
        if self.cfg.eval.eval_on_start and self.position.update == 0:
            self.evaluate()
        while self.position.update < self.total and not self.stopped:
            before = self.position.update
            self.one_rollout()
            self.after_rollout(before)
        if not self.stopped:
            self.finish()

    def one_rollout(self) -> None:
        indices = problems_of_rollout(
            len(self.problems.train),
            self.cfg.sampling.problems_per_rollout,
            self.position.rollout,
            self.cfg.output.seed,
        )
        problems = [self.problems.train[index] for index in indices]
        steps = training_step(self.learner, problems, rollout=self.position.rollout, trainer_state=self.trainer_state)
        began, first = time.perf_counter(), True
        for result, stats in steps:
            now = time.perf_counter()
            self.after_update(result, stats, first=first, seconds=now - began)
            began, first = now, False
            if self.position.update >= self.total:
                break
        self.position.rollout += 1

    def after_update(self, result: RolloutResult, stats: UpdateStats, *, first: bool, seconds: float) -> None:
        """Count, refresh the reference when due, log, and stop the run after too many rejected updates."""
        position, reference = self.position, self.cfg.reference
        position.update += 1
        self.trainer_state.global_step = position.update
        position.skipped += not stats.applied
        position.skipped_in_row = 0 if stats.applied else position.skipped_in_row + 1
        if (
            self.learner.reference is not None
            and reference.sync_ref_model
            and position.update % reference.ref_model_sync_steps == 0
        ):
            self.learner.reference.refresh(reference.ref_model_mixup_alpha)
        if first:
            self.record_rollout(result)
        self.log(result, stats, first=first, seconds=seconds)
        if stats.rejected is not None:
            self.reject(stats)

    def record_rollout(self, result: RolloutResult) -> None:
        """Rewards and verdicts are kept with their step; a verdict of the wall clock lowers what a resume promises."""
        positions = self.dist.mine(len(result.rewards_PG))
        scored = self.dist.in_order(positions, result.scored)
        if any(v == Verdict.TIMEOUT for group in scored for values in group.verdicts.values() for v in values):
            self.position.exactness = SAME_EXPERIENCE
        advantages = self.dist.in_order(positions, list(result.advantages_PG))
        if not self.dist.is_main:
            return
        Journal(self.run_dir).write(self.position.update, self.position.rollout, scored, self.position.exactness)
        if self.cfg.output.log_completions:
            write_completions(
                self.run_dir, self.position.rollout, self.position.update, scored, torch.stack(advantages)
            )

    def log(self, result: RolloutResult, stats: UpdateStats, *, first: bool, seconds: float) -> None:
        metrics = {**stats.metrics(), "learning_rate": self.learner.scheduler.get_last_lr()[0], "step_time": seconds}
        spent = {**result.seconds} if first else {}
        spent["update"] = seconds - sum(spent.get(phase, 0.0) for phase in ("sampling", "scoring"))
        metrics |= {f"seconds/{phase}": value for phase, value in spent.items()}
        if first:
            metrics |= result.metrics | {"rollout": self.position.rollout}
            metrics["tokens_per_second"] = result.metrics["num_tokens"] / seconds
        seen = self.position.rollout * self.cfg.sampling.problems_per_rollout
        metrics |= {"epoch": seen / len(self.problems.train), "skipped_updates": self.position.skipped}
        self.write_metrics(metrics)

    def write_metrics(self, metrics: dict[str, float]) -> None:
        if self.dist.is_main:
            MetricsLog(self.run_dir).write(self.position.update, metrics)
            log_to_trackers(self.accelerator, metrics, self.position.update)
            self.progress.update(self.position.update, metrics)

    def reject(self, stats: UpdateStats) -> None:
        """Put the rows of an update that was not finite on disk; the third in a row ends the run."""
        path = write_rejected(self.run_dir, self.position.update, self.dist.rank, stats)
        self.progress.write(f"update {self.position.update} was not finite and was skipped; its rows are in {path}")
        if self.position.skipped_in_row >= MAX_SKIPPED_IN_ROW:
            raise NonFiniteUpdateError(
                f"{MAX_SKIPPED_IN_ROW} updates in a row were not finite (last: loss {stats.loss}, gradient norm "
                f"{stats.grad_norm}); the weights are still those of the last good update. Look at {path}, then lower "
                "learning_rate or max_grad_norm, or resume from the last checkpoint"
            )

    def after_rollout(self, before: int) -> None:
        """At a boundary: stop if asked, evaluate and save when due."""
        self.stop.signum = self.dist.max_int(self.stop.signum)
        self.stopped = self.stop.signum != 0
        done = self.position.update >= self.total
        evaluate_now = self.due(self.cfg.eval.eval_steps, before) or (done and self.cfg.eval.eval_on_end)
        improved = not self.stopped and evaluate_now and self.evaluate()
        if self.stopped or improved or done or self.due(in_updates(self.cfg.output.save_steps, self.total), before):
            self.save()

    def due(self, every: int, before: int) -> bool:
        return every > 0 and self.position.update // every > before // every

    def evaluate(self) -> bool:
        """Held-out evaluation, logged; returns whether pass@1 is the best so far."""
        seconds: dict[str, float] = {}
        with timed(seconds, "evaluation"):
            metrics, scored = evaluate(
                self.learner.policy,
                self.problems.test,
                self.learner.rubric,
                sampling=self.cfg.sampling,
                cfg=self.cfg.eval,
                dist=self.dist,
                trainer_state=self.trainer_state,
            )
        held_out = {f"eval/{name}": value for name, value in metrics.items()}
        self.write_metrics(held_out | {"seconds/evaluation": seconds["evaluation"]})
        if self.dist.is_main:
            blank = torch.zeros(len(scored), self.cfg.eval.eval_samples)
            write_completions(self.run_dir / "evaluation", 0, self.position.update, scored, blank)
        improved = self.position.best_metric is None or metrics["pass@1"] > self.position.best_metric
        if improved:
            self.position.best_metric, self.position.best_step = metrics["pass@1"], self.position.update
        return improved

    def save(self) -> None:
        """One checkpoint, by all processes together."""
        tensors, state = capture(self.learner, self.position)
        state |= {"seed": self.cfg.output.seed, "data": fingerprint(self.problems.train), "versions": versions()}
        state |= {"config": to_flat(self.cfg)}

        weights = gather_weights(self.learner.policy, self.dist)

        def export(folder: Path) -> None:
            export_policy(self.learner.policy, folder, weights)

        if self.dist.is_main:
            checkpoints.save_checkpoint(self.run_dir, self.position.update, export=export, tensors=tensors, state=state)
            best = [self.position.best_step] if self.position.best_step is not None else []
            checkpoints.prune(self.run_dir, keep_last=self.cfg.output.save_total_limit, keep=best)
        self.dist.barrier()

    def finish(self) -> None:
        """The finished model as one plain Hugging Face folder."""
        weights = gather_weights(self.learner.policy, self.dist)
        if self.dist.is_main:
            export_policy(self.learner.policy, self.run_dir / "final", weights, merge=True)

    def close(self) -> None:
        self.progress.close()
        self.accelerator.end_training()


def find_resume_point(cfg: RunConfig, run_dir: Path, dist: Dist) -> Checkpoint | None:
    """The checkpoint to go on from, chosen by the main process; refuses to write over another run."""
    found: Checkpoint | None = None
    if dist.is_main:
        checkpoints.clean_leftovers(run_dir)
        skipped: list[str] = []
        found = checkpoints.load_newest(run_dir, on_skip=lambda path, why: skipped.append(f"{path.name}: {why}"))
        for line in skipped:
            print(f"WARNING checkpoint passed over: {line}")
    found = dist.gather(found)[0]
    used = found is not None or (run_dir / "metrics.jsonl").exists()
    if cfg.output.resume == "never" and used:
        raise ConfigError(f"{run_dir} already holds a run: set `resume: auto` to go on with it, or another output_dir")
    if cfg.output.resume == "must" and found is None:
        raise CheckpointError(f"resume: must, but {run_dir} holds no valid checkpoint")
    return found


def check_same_run(saved: Checkpoint, cfg: RunConfig, problems: Problems) -> None:
    """A checkpoint continues the run that wrote it: same data and seed, or the promise of exactness is void."""
    if saved.state["data"] != fingerprint(problems.train):
        raise CheckpointError(f"{saved.path} was trained on other problems than the config now loads")
    if saved.state["seed"] != cfg.output.seed:
        raise CheckpointError(f"{saved.path} was trained with seed {saved.state['seed']}, not {cfg.output.seed}")
