"""`accelerate launch` for real: what it cannot give is refused, what dies does not hang, what is stopped has saved."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from grpo.checkpoint.store import find_checkpoints, open_checkpoint
from grpo.distributed import precision_notes, refuse_unsupported_launch
from grpo.errors import ConfigError
from grpo.monitor.metrics import read_lines, read_metrics
from tests.grpo.launching import DEADLINE, LAUNCH_FILES, Launch, launch_file, launched
from tests.grpo.tiny_runs import differences, settings

MULTI_CPU = {"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}
FSDP2 = {"fsdp_version": 2}


def sharded(**changes: Any) -> dict[str, Any]:
    return {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": FSDP2 | changes}


def variables_of(tmp_path: Path, launch_config: dict[str, Any], *flags: str) -> dict[str, str]:
    """The environment that accelerate's launcher gives each process, without starting one."""
    path = tmp_path / "launch.yaml"
    common = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0, "mixed_precision": "no"}
    path.write_text(yaml.safe_dump(common | launch_config))
    given = launch_command_parser().parse_args(["--config_file", str(path), *flags, "script.py"])
    arguments, _, _ = _validate_launch_command(given)
    if arguments.multi_gpu or arguments.use_fsdp:
        return prepare_multi_gpu_env(arguments) | {"WORLD_SIZE": str(arguments.num_processes), "RANK": "0"}
    return prepare_simple_launcher_cmd_env(arguments)[1]


REFUSED = {
    "MULTI_CPU": (MULTI_CPU, (), r"started one.*ddp\.yaml"),
    "--cpu": ({"distributed_type": "NO", "num_processes": 2}, ("--cpu",), r"started one.*ddp\.yaml"),
    "NO with a count": ({"distributed_type": "NO", "num_processes": 2}, (), r"started one.*ddp\.yaml"),
    "FSDP 1": (sharded(fsdp_version=1), (), "fsdp_version: 2"),
    "FSDP with offload": (sharded(fsdp_offload_params=True), (), "fsdp_offload_params: false"),
    "FSDP with checkpointing": (sharded(fsdp_activation_checkpointing=True), (), "gradient_checkpointing: true"),
    "fp16": ({"distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "fp16"}, (), "dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_launch_that_cannot_give_what_it_promises_is_refused(name: str, tmp_path: Path) -> None:
    launch_config, flags, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        refuse_unsupported_launch(variables_of(tmp_path, launch_config, *flags))


@pytest.mark.parametrize("kind", ["cpu", "ddp", "fsdp2"])
def test_the_shipped_launch_files_are_accepted(kind: str, tmp_path: Path) -> None:
    shipped = yaml.safe_load((LAUNCH_FILES / f"{kind}.yaml").read_text())
    variables = variables_of(tmp_path, shipped)
    refuse_unsupported_launch(variables)
    assert (variables.get("ACCELERATE_USE_FSDP") == "true") == (kind == "fsdp2")
    refuse_unsupported_launch(variables_of(tmp_path, shipped, "--num_processes", "1"))


def test_mixed_precision_of_the_launch_file_that_counts_for_nothing_is_said(tmp_path: Path) -> None:
    launch_config = {"distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "bf16"}
    variables = variables_of(tmp_path, launch_config)
    refuse_unsupported_launch(variables)
    [note] = precision_notes(variables, torch.float32)
    assert "mixed_precision: bf16" in note and "float32" in note
    assert precision_notes(variables, torch.bfloat16) == []
    assert precision_notes(variables | {"ACCELERATE_MIXED_PRECISION": "no"}, torch.float32) == []


def test_deepspeed_is_refused() -> None:
    """accelerate sets this variable, and asks for the package first, which is not among this project's."""
    with pytest.raises(ConfigError, match=r"DeepSpeed.*fsdp2\.yaml"):
        refuse_unsupported_launch({"ACCELERATE_USE_DEEPSPEED": "true"})


def test_a_world_without_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="WORLD_SIZE without RANK"):
        refuse_unsupported_launch({"WORLD_SIZE": "2"})
    refuse_unsupported_launch({"WORLD_SIZE": "2", "RANK": "1"})
    refuse_unsupported_launch({})


def recipe(model: Path, run_dir: Path, **changes: Any) -> list[str]:
    """The words that run a recipe which goes on until it is stopped."""
    path = run_dir.with_suffix(".yaml")
    path.write_text(json.dumps(settings(model, run_dir, **{"max_steps": 100_000, "eval_steps": 0} | changes)))
    return ["--config", str(path)]


def wait_until(happened: Callable[[], bool], launch: Launch) -> None:
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert launch.process.poll() is None or launch.members(), launch.output()
        assert time.monotonic() < deadline, launch.output()
        time.sleep(0.2)


def rollouts(run_dir: Path) -> int:
    return len(read_lines(run_dir / "rollouts.jsonl"))


def last_update(run_dir: Path) -> int:
    return max(line["step"] for line in read_metrics(run_dir) if "loss" in line)


@pytest.mark.normal
def test_a_multi_cpu_file_starts_nothing(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "multi_cpu.yaml"
    path.write_text(yaml.safe_dump({"compute_environment": "LOCAL_MACHINE", "num_machines": 1} | MULTI_CPU))
    run_dir = tmp_path / "run"
    words = ["--config_file", path, "-m", "recipes.r1_zero", *recipe(tiny_model, run_dir)]
    with launched(*words, log=tmp_path / "log") as launch:
        assert launch.wait() != 0
    assert "exit status 2" in launch.output()
    assert "ConfigError" in launch.output() and "recipes/accelerate/ddp.yaml" in launch.output()
    assert not run_dir.exists()


@pytest.mark.normal
def test_sigterm_to_the_launcher_of_one_process_ends_the_run_with_a_checkpoint(
    tiny_model: Path, tmp_path: Path
) -> None:
    """This launcher dies of the signal and passes nothing on; the run follows it. By file name, not by module."""
    run_dir = tmp_path / "run"
    words = [*launch_file("cpu"), "recipes/r1_zero.py", *recipe(tiny_model, run_dir, reward_funcs=["format"])]
    with launched(*words, log=tmp_path / "log") as launch:
        wait_until(lambda: rollouts(run_dir) >= 2, launch)
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait() == -signal.SIGTERM
        wait_until(lambda: not launch.members(), launch)
    assert find_checkpoints(run_dir)[0].name == f"step-{last_update(run_dir):08d}"
    open_checkpoint(find_checkpoints(run_dir)[0])


@pytest.mark.normal
def test_two_processes_share_a_folder_a_signal_and_a_fate(tiny_model: Path, tmp_path: Path) -> None:
    """A second launch in a taken folder is refused; SIGTERM to the launcher stops both ranks at one update, saved;
    the death of one rank ends a resumed launch, and what was saved stays good."""
    run_dir = tmp_path / "run"
    words = ["-m", "recipes.r1_zero", *recipe(tiny_model, run_dir, log_completions=False)]
    with launched(*launch_file("ddp"), *words, log=tmp_path / "first") as first:
        wait_until(lambda: rollouts(run_dir) >= 2, first)
        with launched(*launch_file("ddp"), *words, log=tmp_path / "second") as second:
            assert second.wait() != 0
        # The main rank says so, and the launcher's table; the other rank too where the launcher was slow to end it.
        assert second.output().count("ConfigError") in (2, 4), second.output()
        assert second.output().count("is in use by pid") == second.output().count("ConfigError")
        first.process.send_signal(signal.SIGTERM)
        assert first.wait() != 0
    assert not first.members()
    stopped = last_update(run_dir)
    assert find_checkpoints(run_dir)[0].name == f"step-{stopped:08d}"
    assert f"stopped by SIGTERM after update {stopped}" in first.output()

    with launched(*launch_file("ddp"), *words, log=tmp_path / "third") as third:
        wait_until(lambda: last_update(run_dir) >= stopped + 3, third)
        os.kill(third.rank(1), signal.SIGKILL)
        assert third.wait() != 0
        wait_until(lambda: not third.members(), third)
    assert f"resumed from {run_dir}/checkpoints/step-{stopped:08d}" in third.output()
    assert open_checkpoint(find_checkpoints(run_dir)[0]).step > stopped


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_soak_with_a_dead_rank_ends_as_if_nothing_had_happened(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Thirty updates with a reference that moves; the same with SIGKILL to one rank at three random places."""
    changes = {"max_steps": 30, "num_minibatches": 2, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 7}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for run_dir in (whole, cut):
        for kill_at in (*((5, 13, 22) if run_dir is cut else ()), None):
            words = ["-m", "recipes.r1_zero", *recipe(tiny_model, run_dir, **changes)]
            with launched(*launch_file(kind), *words, log=tmp_path / "log") as launch:
                if kill_at:
                    wait_until(lambda at=kill_at, at_dir=run_dir: rollouts(at_dir) * 2 >= at, launch)
                    os.kill(launch.rank(kill_at % 2), signal.SIGKILL)
                assert (launch.wait() == 0) == (kill_at is None), launch.output()
    assert last_update(cut) == 30
    assert differences(whole, cut) == set()
