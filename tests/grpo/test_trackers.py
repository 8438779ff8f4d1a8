import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grpo.errors import ConfigError
from grpo.monitor.trackers import tracker_names

CONFIG = {"learning_rate": 1e-4, "reward_funcs": ["accuracy"], "max_steps": 3, "preset": None, "log_completions": True}

# A process of its own: an Accelerator is a singleton of the process.
RUN = """
import json, sys
from accelerate import Accelerator
from grpo.monitor.trackers import log_to_trackers, start_trackers, tracker_names
tracker, run_dir, config, done, nan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4]), float("nan")
accelerator = Accelerator(cpu=True, log_with=tracker_names(tracker), project_dir=run_dir)
start_trackers(accelerator, project="grpo", run_name="r", run_dir=run_dir, config=config, done_updates=done)
for step in range(done + 1, done + 4):
    log_to_trackers(accelerator, {"reward": step / 10 + done, "eval/pass@1": 0.5, "kl": nan}, step)
accelerator.end_training()
"""


def run(tracker, run_dir, *, done=0, **environment):
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(run_dir / "trackio"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", RUN, tracker, str(run_dir), json.dumps(CONFIG), str(done)],
        env=os.environ | offline | environment, check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def installed(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


@pytest.mark.parametrize("nothing", ["none", [], ["none"]])
def test_none_means_no_tracker(nothing):
    assert tracker_names(nothing) == []


@installed("tensorboard")
def test_a_name_or_a_list_each_once():
    assert tracker_names("tensorboard") == tracker_names(["tensorboard", "none", "tensorboard"]) == ["tensorboard"]


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'wand'.*none, tensorboard, trackio, wandb; did you mean 'wandb'"):
        tracker_names("wand")
    with pytest.raises(ConfigError, match="'mlflow' is not one of"):
        tracker_names(["tensorboard", "mlflow"])


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command(name, monkeypatch):
    monkeypatch.setattr("grpo.monitor.trackers.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"pip install 'r1-toolkit\[{name}\]'"):
        tracker_names(name)


def events(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run_dir / "grpo"))
    reader.Reload()
    return reader


@installed("tensorboard")
@pytest.mark.normal
def test_tensorboard_files_hold_the_metrics(tmp_path):
    run("tensorboard", tmp_path)
    reader = events(tmp_path)
    assert set(reader.Tags()["scalars"]) == {"reward", "eval/pass@1"}  # kl was never finite
    assert [event.step for event in reader.Scalars("reward")] == [1, 2, 3]
    assert all(math.isclose(e.value, e.step / 10, rel_tol=1e-6) for e in reader.Scalars("reward"))


@installed("tensorboard")
@pytest.mark.normal
def test_a_resumed_run_hides_what_the_killed_one_wrote_later(tmp_path):
    run("tensorboard", tmp_path)
    run("tensorboard", tmp_path, done=1)
    assert [(e.step, round(e.value, 3)) for e in events(tmp_path).Scalars("reward")] == [
        (1, 0.1), (2, 1.2), (3, 1.3), (4, 1.4),
    ]  # fmt: skip


@installed("wandb")
@pytest.mark.normal
def test_wandb_writes_an_offline_run(tmp_path):
    run("wandb", tmp_path)
    (record,) = Path(tmp_path, "wandb").glob("offline-run-*/run-*.wandb")
    assert b"reward" in record.read_bytes() and b"eval/pass@1" in record.read_bytes()


@installed("trackio")
@pytest.mark.normal
def test_trackio_stores_the_run_locally(tmp_path):
    run("trackio", tmp_path)
    stored = b"".join(path.read_bytes() for path in Path(tmp_path, "trackio").rglob("*") if path.is_file())
    assert b"reward" in stored and b"eval/pass@1" in stored
