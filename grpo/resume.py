"""Which checkpoint a run goes on from, and whether going on is still the same run, bit for bit."""

from __future__ import annotations

import json
import platform
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from grpo.checkpoint import store as checkpoints
from grpo.checkpoint.keeper import LINEAGE
from grpo.checkpoint.state import Position
from grpo.checkpoint.store import Checkpoint
from grpo.config import DataConfig, EvalConfig, OutputConfig, RunConfig, VllmConfig
from grpo.config.parse import to_flat
from grpo.distributed import Dist
from grpo.errors import CheckpointError, ConfigError
from grpo.setup import Problems, versions

# Other values of these keys train the same weights; what the data keys load is compared by its fingerprint.
FREE_KEYS = {field.name for owner in (DataConfig, EvalConfig, OutputConfig, VllmConfig) for field in fields(owner)} - {
    "seed"
}
# Other values of these go on with the same experience, but move the schedule or the last bits.
INEXACT_KEYS = {
    "max_steps", "num_train_epochs", "max_tokens_per_microbatch", "rows_per_forward", "gradient_checkpointing",
    "attn_implementation", "sampler", "max_tokens_in_flight", "update", "schedule",
}  # fmt: skip


def find_resume_point(cfg: RunConfig, run_dir: Path, dist: Dist) -> Checkpoint | None:
    """The checkpoint to go on from, None for a run that starts; chosen by the main process (collective).

    Raises ConfigError where `resume: never` would write over a run, CheckpointError where there is nothing valid to go
    on from: `resume: must` without a checkpoint, or checkpoints of which all are damaged.
    """
    found, used = _newest(run_dir) if dist.is_main else (None, False)
    found, used = dist.from_main((found, used))
    if cfg.output.resume == "never" and used:
        raise ConfigError(f"{run_dir} already holds a run: set `resume: auto` to go on with it, or another output_dir")
    if cfg.output.resume == "must" and found is None:
        raise CheckpointError(f"resume: must, but {run_dir} holds no valid checkpoint")
    if found is None and checkpoints.find_checkpoints(run_dir):
        raise CheckpointError(
            f"every checkpoint in {run_dir} is damaged, and starting again would write over what is left of the run: "
            "restore one of them, or choose another output_dir"
        )
    return found


def _newest(run_dir: Path) -> tuple[Checkpoint | None, bool]:
    """(the newest valid checkpoint, whether the folder has been used)."""
    checkpoints.clean_leftovers(run_dir)
    found = checkpoints.load_newest(
        run_dir, on_skip=lambda path, why: print(f"WARNING: checkpoint {path.name} is passed over: {why}", flush=True)
    )
    return found, bool(checkpoints.find_checkpoints(run_dir)) or (run_dir / "metrics.jsonl").exists()


def nothing_left(cfg: RunConfig, run_dir: Path, saved: Checkpoint, total: int, dist: Dist) -> bool:
    """Whether the run is finished: its updates are done, evaluated where asked for, and exported. Says so."""
    position = Position(**saved.state["position"])
    left = position.update < total or evaluation_due(cfg.eval, position, total)
    finished = dist.from_main(not left and _exported_update(run_dir) == position.update)
    if finished and dist.is_main:
        print(
            f"nothing is left to do: {run_dir} is finished, {position.update} of {total} updates; the model is in "
            f"{run_dir / 'final'}. For more, raise max_steps or num_train_epochs",
            flush=True,
        )
    return finished


def evaluation_due(cfg: EvalConfig, position: Position, total: int) -> bool:
    """Whether the run, standing there, has an evaluation to do; a matter of its position alone."""
    if position.evaluated == position.update:
        return False
    edges = (cfg.eval_on_start and position.update == 0) or (cfg.eval_on_end and position.update >= total)
    return edges or position.reached(cfg.eval_steps, since=max(position.evaluated, 0))


def _exported_update(run_dir: Path) -> int | None:
    path = run_dir / "final" / LINEAGE
    return json.loads(path.read_text())["counts"]["updates"] if path.exists() else None


def identity(cfg: RunConfig, problems: Problems, dist: Dist) -> dict[str, Any]:
    """What a checkpoint keeps of the run that wrote it, as JSON gives it back."""
    config = json.loads(json.dumps(to_flat(cfg), default=str))
    return {
        "config": config,
        "data": problems.fingerprint,
        "world": dist.world,
        "versions": versions(),
        "machine": machine(dist),
    }


def machine(dist: Dist) -> dict[str, Any]:
    """What the last bits of a sum depend on besides the libraries."""
    return {
        "device": dist.device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def refuse_other_run(saved: Checkpoint, now: dict[str, Any]) -> None:
    """Raises CheckpointError where `now`, this run's identity, trains something else than the checkpoint's run."""
    changed = [
        f"{key}: {value} in the checkpoint, now {given}"
        for key, (value, given) in _changed_keys(saved, now).items()
        if key not in INEXACT_KEYS
    ]
    begun = len(Position(**saved.state["position"]).stage_places)  # what is still to come may be another
    past, here = (config["schedule"][:begun] for config in (saved.state["config"], now["config"]))
    if past != here:
        changed.append(f"schedule, whose changes have begun: {past} in the checkpoint, now {here}")
    if saved.state["data"] != now["data"]:
        changed.append("the training problems, or their weights, are not those that the data keys gave then")
    if changed:
        raise CheckpointError(
            f"{saved.path} belongs to a run with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Set them back to go on with it, or start a run of its own in another output_dir"
        )


def inexact_because(saved: Checkpoint, now: dict[str, Any]) -> list[str]:
    """Why going on does not repeat, bit for bit, what the interrupted run would have done; empty when it does."""
    reasons = [
        f"{key} was {value} and is {given}"
        for key, (value, given) in _changed_keys(saved, now).items()
        if key in INEXACT_KEYS
    ]
    if saved.state["world"] != now["world"]:
        reasons.append(f"{saved.state['world']} process(es) saved it, {now['world']} go on")
    for group in ("versions", "machine"):
        for name in saved.state[group].keys() | now[group].keys():
            then, here = saved.state[group].get(name), now[group].get(name)
            if then != here:
                reasons.append(f"{name} was {then} and is {here}")
    return sorted(reasons)


def _changed_keys(saved: Checkpoint, now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that matter -> (then, now). `preset` does not: what it set is among the others."""
    then, here = saved.state["config"], now["config"]
    watched = sorted((then.keys() | here.keys()) - FREE_KEYS - {"preset"})
    return {key: (then.get(key), here.get(key)) for key in watched if then.get(key) != here.get(key)}
