"""A run of a trl trainer in a run folder like all others: lock, resume, metrics.jsonl, final model, lineage, report."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from grpo.config import AdapterConfig, ModelConfig
from grpo.config.coerce import dump_yaml
from grpo.config.parse import config_text, to_flat
from grpo.distributed import Dist
from grpo.errors import CheckpointError, ConfigError
from grpo.files import write_json_atomic, write_text_atomic
from grpo.monitor.metrics import MetricsLog
from grpo.policy.export import export_policy, load_adapter
from grpo.policy.load import Policy, load_policy
from recipes.tuning.trainer_keys import TrainerRun, trainer_config

TRAINER_STATE = "trainer_state.json"  # what the trainer writes last into a checkpoint
RUN = "run.json"  # what a folder's checkpoints were trained with
# Other values of these train the same weights.
FREE_KEYS = {
    "resume", "dry_run", "logging_steps", "logging_first_step", "logging_strategy", "log_level", "report_to",
    "eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size", "run_name", "save_steps",
    "save_strategy", "save_total_limit", "output_dir", "disable_tqdm", "push_to_hub",
}  # fmt: skip
HELD_OUT = "dataset_test_split"  # decides about no weights either, but is part of what a run was


@dataclass(frozen=True, kw_only=True)
class TunedOutputConfig:
    """The run folder. Checkpoints follow the trainer's `save_strategy`, `save_steps` and `save_total_limit`."""

    output_dir: str  # the run folder; the model ends up in its `final/`
    # auto: from the newest checkpoint if there is one; never: refuse a used folder; must: refuse a fresh one
    resume: Literal["auto", "never", "must"] = "never"
    seed: int = 42  # of order and draws; at least 0
    dry_run: bool = False  # read and tokenise the rows, say what a run would do, and stop


def this_process() -> Dist:
    """This process's place among those of the launcher, before the trainer makes its own accelerator."""
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    state = PartialState(cpu=wants_cpu or not torch.cuda.is_available())
    return Dist(rank=state.process_index, world=state.num_processes, device=state.device)


def resume_point(output: TunedOutputConfig, what: Mapping[str, Any], dist: Dist) -> Path | None:
    """The newest whole checkpoint, chosen by the main process (collective); half-written ones are removed.

    Raises ConfigError where `resume: never` would write over a run, CheckpointError where `resume: must` finds none and
    where `what`, the settings and data of this run, differs from what the checkpoint was trained with.
    """
    run_dir = Path(output.output_dir)
    found = _newest(run_dir) if dist.is_main else None
    found, ours, used = dist.from_main((found, (run_dir / RUN).exists(), (run_dir / "config.yaml").exists()))
    if used and not (ours and output.resume != "never"):
        ways = "set `resume: auto` to go on with it, or another output_dir" if ours else "give another output_dir"
        raise ConfigError(f"{run_dir} already holds a run: {ways}")
    if output.resume == "must" and found is None:
        raise CheckpointError(f"resume: must, but {run_dir} holds no checkpoint")
    if found is not None:
        then = _without_held_out(json.loads((run_dir / RUN).read_text(encoding="utf-8")))
        now = _without_held_out(what)
        changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
        if changed:
            lines = "\n  ".join(f"{key}: {then.get(key)!r} then, now {now.get(key)!r}" for key in changed)
            raise CheckpointError(
                f"{found} belongs to a run with other settings or data:\n  {lines}\nSet them back to go on with it, or "
                "start a run of its own in another output_dir"
            )
    return found


def _without_held_out(value: Any) -> Any:
    """Settings, however deep: each set of a mixture has its own split."""
    if isinstance(value, Mapping):
        return {key: _without_held_out(item) for key, item in value.items() if key != HELD_OUT}
    return [_without_held_out(item) for item in value] if isinstance(value, list) else value


def settings(config: Any, trainer: Mapping[str, Any], **data: Any) -> dict[str, Any]:
    """Everything that decides about the weights, and which rows are held out, as JSON gives it back."""
    flat = {**to_flat(config), **trainer, **data}
    kept = {key: value for key, value in flat.items() if key not in FREE_KEYS}
    return json.loads(json.dumps(kept, default=str))


def write_start(run_dir: Path, config: Any, trainer: Mapping[str, Any], what: Mapping[str, Any]) -> None:
    """`config.yaml`, which `--config` reads back, and what a later resume is compared with."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text_atomic(run_dir / "config.yaml", f"{config_text(config)}\n# trainer\n{dump_yaml(dict(trainer))}")
    write_json_atomic(run_dir / RUN, dict(what))


def _newest(run_dir: Path) -> Path | None:
    """The trainer writes into the checkpoint's own folder, its state last: one without it was cut off by a kill."""
    whole: dict[int, Path] = {}
    for path in run_dir.glob("checkpoint-*"):
        if not re.fullmatch(r"checkpoint-\d+", path.name):
            continue
        if _is_json(path / TRAINER_STATE):
            whole[int(path.name.split("-")[1])] = path
        else:
            print(f"WARNING: {path} was cut off while it was written; removed", flush=True)
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


class MetricsCallback(TrainerCallback):
    """What the trainer logs of an update, as a line of metrics.jsonl; on a resume the lines after the checkpoint go.

    names: the trainer's name of a metric -> ours; others are left out.
    """

    def __init__(self, run_dir: Path, names: Mapping[str, str], dist: Dist) -> None:
        self.run_dir, self.names, self.dist = run_dir, names, dist

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.dist.is_main:
            self.log = MetricsLog(self.run_dir)
            self.log.rewind(state.global_step, evaluated=state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        if not self.dist.is_main or logs.keys().isdisjoint({"loss", "eval_loss"}):
            return
        took = {"step_time": time.perf_counter() - self.began} if "loss" in logs else {}
        held_out = "eval_loss" in logs  # its line has the epoch, which the update's has as well
        metrics = {
            ours: float(logs[name])
            for name, ours in self.names.items()
            if name in logs and ours.startswith("eval/") is held_out
        }
        self.log.write(state.global_step, metrics | took)


class OwnWeights:
    """For a trainer whose model has the checkpoint's weights already: transformers would load them by their names in
    the file, which for DeepSeek-V3's experts are not the model's, and leave those as the base has them."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        pass


def load_student(
    model: ModelConfig, adapter: AdapterConfig, checkpoint: Path | None, *, dist: Dist, seed: int
) -> Policy:
    """The policy to be tuned, with the checkpoint's weights where there is one; in CPU memory, for the trainer moves it
    to its device."""
    if checkpoint is not None and not adapter.use_peft:
        model = replace(model, model_name_or_path=str(checkpoint), init_random=False)
    policy = load_policy(model, adapter, device=dist.device, seed=seed, sharded=True)
    if checkpoint is not None and adapter.use_peft:
        load_adapter(policy, checkpoint)
    return policy


def trainer_arguments(kind: type, run: TrainerRun, policy: Policy, **more: Any) -> Any:
    """The trainer's own config: the user's keys, and those that follow from ours; ConfigError where it refuses them."""
    cfg, on_cpu = run.config, policy.device.type == "cpu"
    usual = {"use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu}
    if "per_device_train_batch_size" in run.trainer:  # what fits in training fits in evaluation
        usual["per_device_eval_batch_size"] = run.trainer["per_device_train_batch_size"]
    return trainer_config(
        kind,
        **{**usual, **run.trainer},
        output_dir=cfg.output.output_dir,
        seed=cfg.output.seed,
        bf16=policy.compute_dtype == torch.bfloat16,
        gradient_checkpointing=cfg.model.gradient_checkpointing,
        **more,
    )


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """The model's weights on the main process where they are sharded (collective), None where it has them itself."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return None


def export(policy: Policy, run_dir: Path, weights: dict[str, Any] | None) -> Path:
    """`final/`: a plain Hugging Face folder, LoRA folded in. Called by the main process."""
    staged, final = run_dir / ".final.unfinished", run_dir / "final"
    shutil.rmtree(staged, ignore_errors=True)
    export_policy(policy, staged, weights, merge=True)
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    return final
