"""Supervised fine-tuning on conversations through `trl.SFTTrainer`: what cold start, second SFT and distillation share.

The rows are tokenised here, so that the trainer sees the ids that reinforcement learning and evaluation will; packing,
optimizer, schedule, checkpoints and several processes are the trainer's. The loss is on completions alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grpo.checkpoint.runlock import RunLock
from grpo.config import AdapterConfig, ModelConfig
from grpo.distributed import Dist
from grpo.errors import ConfigError
from grpo.policy.load import Policy, routers
from recipes.command import exit_code, write_report
from recipes.lineage import LINEAGE, write_lineage
from recipes.tuning.packed_attention import use_packed_attention
from recipes.tuning.token_file import ConversationsConfig, RowEntry, TokenFile, token_files
from recipes.tuning.trainer_keys import TrainerRun, parse_with_trainer, trl
from recipes.tuning.trainer_run import (
    MetricsCallback,
    OwnWeights,
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

# R1's for both of its SFT stages and for distillation (arXiv 2501.12948v2, B.4): 2 to 3 epochs, a cosine down to a
# tenth. The rate and the rows of an update are the stage's own.
R1_SCHEDULE: dict[str, Any] = {
    "num_train_epochs": 2,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "logging_steps": 1,
    "save_total_limit": 2,
    "report_to": "none",
}
# What trl logs -> our names; `loss` means something else in a GRPO run.
METRICS = {
    "loss": "nll",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "mean_token_accuracy",
    "epoch": "epoch",
    "eval_loss": "eval/nll",
    "eval_mean_token_accuracy": "eval/mean_token_accuracy",
}
LEAK = 1e-2  # of the spread of the logits: far over rounding in bfloat16, far under what a leak changes


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """A stage of supervised fine-tuning. Every key of `trl.SFTConfig` may stand beside these."""

    model: ModelConfig
    adapter: AdapterConfig
    data: ConversationsConfig
    output: TunedOutputConfig
    allow_tuned_start: bool = False  # second_sft: start from a model that a stage of this project has made


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`defaults`: keys of ours and of the trainer. `from_base`: refuse a model that another stage has made."""

    name: str
    defaults: Mapping[str, Any]
    from_base: bool = False

    def parse(self, argv: Sequence[str]) -> TrainerRun:
        """Raises ConfigError."""
        return parse_with_trainer(
            argv, SftConfig, trl().SFTConfig, self.defaults, held_out=lambda config: bool(config.data.held_out())
        )

    def main(self, argv: list[str] | None = None) -> int:
        given = sys.argv[1:] if argv is None else argv
        return exit_code(lambda: fine_tune(self.parse(given), self))


def fine_tune(run: TrainerRun, stage: Stage) -> int:
    """Tune as the run says; the model ends up in `<output_dir>/final`. Raises ConfigError, DataError, CheckpointError:
    what the settings say is judged before the rows are read, and the rows before the weights are loaded."""
    cfg: SftConfig = run.config
    run_dir, dist, began = Path(cfg.output.output_dir), this_process(), time.perf_counter()
    with dist.entered_by_main(RunLock(run_dir)):
        if dist.is_main and run.notes:
            print("\n".join(run.notes), flush=True)
        if stage.from_base and not cfg.allow_tuned_start:
            require_base(cfg.model.model_name_or_path, stage.name)
        rows, held_out = token_files(cfg.model, cfg.data, run_dir, held_out=evaluated(run))
        what = settings(cfg, run.trainer, tokens=rows.path.name)
        checkpoint = resume_point(cfg.output, what, dist)
        # The held-out rows first: there are few, and their split may be missing.
        counts = {"held_out": held_out.made(dist)["rows"]} if held_out else {}
        counts |= rows.made(dist)
        if cfg.output.dry_run:
            return 0
        policy = load_student(cfg.model, cfg.adapter, checkpoint, dist=dist, seed=cfg.output.seed)
        trainer = build_trainer(run, policy, rows, held_out, dist)
        if dist.is_main:
            write_start(run_dir, cfg, run.trainer, what)
        announce(policy, trainer, dist)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        weights = whole_weights(trainer)
        if dist.is_main:
            finish(run, stage, export(policy, run_dir, weights), counts, time.perf_counter() - began)
        dist.barrier()
    return 0


def evaluated(run: TrainerRun) -> Sequence[RowEntry]:
    """The held-out rows, unless their evaluation is off."""
    off = run.trainer["eval_strategy"] == "no" and "eval_on_start" not in run.trainer
    return () if off else run.config.data.held_out()


def require_base(name: str, stage: str) -> None:
    """Raises ConfigError where the model's folder says that a stage has made it."""
    found = next((path for path in (Path(name) / LINEAGE, Path(name).parent / LINEAGE) if path.is_file()), None)
    if found is None:
        return
    made = json.loads(found.read_text(encoding="utf-8"))
    by = made.get("stage", "reinforcement learning")  # a run of the loop without a recipe names no stage
    source = made["inputs"]["model"]["name"]
    raise ConfigError(
        f"model_name_or_path: {name} was made by {by} from {source} (says {found}); {stage} starts from the base "
        "again, as R1 does: name that, or set `allow_tuned_start: true`"
    )


def build_trainer(run: TrainerRun, policy: Policy, rows: TokenFile, held_out: TokenFile | None, dist: Dist) -> Any:
    """TRL's trainer on the policy and the token files. Raises ConfigError where rows of a pack would see each other."""
    cfg: SftConfig = run.config
    args = trainer_arguments(
        trl().SFTConfig, run, policy, max_length=rows.max_length if run.trainer.get("packing") else None
    )

    if args.packing and cfg.model.attn_implementation is None:
        use_packed_attention(policy, dist)

    class Trainer(OwnWeights, trl().SFTTrainer):
        pass

    trainer = Trainer(
        model=policy.model,
        args=args,
        train_dataset=rows.dataset(),
        eval_dataset=held_out.dataset() if held_out else None,
        processing_class=policy.tokenizer,
        callbacks=[MetricsCallback(Path(cfg.output.output_dir), METRICS, dist)],
    )
    if args.packing:
        require_exact_packing(policy, trainer.data_collator, dist)
    return trainer


@torch.no_grad()
def require_exact_packing(policy: Policy, collate: Any, dist: Dist) -> None:
    """Runs two packs that differ in their first row alone. Raises ConfigError where the second row's logits differ:
    this attention implementation does not keep packed rows apart."""
    device = next(policy.model.parameters()).device
    if device.type != policy.device.type:
        if dist.is_main:
            print("WARNING: sharded weights are not on the device yet: whether packed rows stay apart was not tried")
        return
    ids = [token for token in range(len(policy.tokenizer)) if token not in policy.eos_ids][:48]
    first, other, second = ids[:16], ids[16:32], ids[32:]
    logits = []
    with policy.eval_mode():
        for before in (first, other):
            row = {"input_ids": before + second, "labels": before + second, "seq_lengths": [len(before), len(second)]}
            inputs = {name: x.to(device) if torch.is_tensor(x) else x for name, x in collate([row]).items()}
            inputs.pop("labels")
            logits.append(policy.model(**inputs, use_cache=False).logits[0, len(before) :].float())
    difference, spread = (logits[0] - logits[1]).abs().max().item(), logits[0].std().item()
    if difference > LEAK * spread:
        raise ConfigError(
            f"packing: true, but with attn_implementation {policy.network.config._attn_implementation!r} packed rows "
            f"of this model see each other (their logits move by {difference:.2g}, of a spread of {spread:.2g}): set "
            "`packing: false`, or another attn_implementation"
        )


def announce(policy: Policy, trainer: Any, dist: Dist) -> None:
    if not dist.is_main:
        return
    parameters = sum(p.numel() for p in policy.trainable().values())
    unit = "packs" if trainer.args.packing else "rows"
    print(f"training {parameters:,} parameters on {len(trainer.train_dataset):,} {unit}", flush=True)
    if routers(policy.network):
        print("experts: routers are trained, their balance biases stay as the base has them", flush=True)


def finish(run: TrainerRun, stage: Stage, final: Path, counts: Mapping[str, Any], seconds: float) -> None:
    """Lineage, and the report."""
    cfg: SftConfig = run.config
    write_lineage(
        cfg.output.output_dir,
        stage=stage.name,
        inputs={"model": cfg.model.model_name_or_path, **row_inputs(run)},
        config=settings(cfg, run.trainer),
        seconds=seconds,
        counts=counts,
    )
    print(f"the model is in {final}", flush=True)
    write_report(Path(cfg.output.output_dir))


def row_inputs(run: TrainerRun) -> dict[str, str]:
    """For the lineage: the set, or each of several, to train on and held out."""
    inputs = {}
    for role, sources in {"data": run.config.data.sources(), "held_out": evaluated(run)}.items():
        for number, source in enumerate(sources, 1):
            inputs[role if len(sources) == 1 else f"{role} {number}"] = source.place
    return inputs
