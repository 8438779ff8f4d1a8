"""The shipped chain from base to distilled student, cut down to minutes: every stage is the real one, and so is the
kill in the middle. What comes out at full size is in recipes/README.md."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grpo.config.coerce import dump_yaml, load_yaml
from recipes.pipeline import main

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "recipes" / "configs" / "tiny_v3" / "pipeline.yaml"
RL = {
    "max_steps": 2, "save_steps": 1, "problems_per_rollout": 4, "num_generations": 4, "eval_on_start": False,
    "eval_problems": 2, "eval_samples": 2, "warmup_steps": 0,
}  # fmt: skip
CUT: dict[str, dict[str, Any]] = {
    "tiny_manners": {"pairs": 200},
    "train_preference_model": {"max_steps": 4},
    "r1_zero": RL,
    "reasoning_rl": {**RL, "launch": "recipes/accelerate/ddp.yaml --num_processes 2"},  # killed in here
    "all_scenarios_rl": RL,
    "rejection_sampling": {"num_generations": 2, "problems_per_shard": 64},
    "make_cold_start": {"num_generations": 2, "problems_per_shard": 64},
    "cold_start_sft": {"max_steps": 3},
    "second_sft": {"max_steps": 3},
    "distill": {"max_steps": 3},
    "distill_on_policy": {"max_steps": 2, "per_device_train_batch_size": 8},
}
ROWS_A = ["Base", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1"]
ROWS_B = ["Student", "Student by RL", "Student by SFT", "SFT, then on-policy"]


def cut_down(folder: Path) -> list[str]:
    """The flags that run the shipped chain at a test's size."""
    chain = load_yaml(SHIPPED.read_text(encoding="utf-8"))
    for stage in chain["stages"].values():
        keys = load_yaml(Path(stage["config"]).read_text(encoding="utf-8")) if "config" in stage else {}
        stage.update(CUT[stage["recipe"]])
        if sources := keys.get("dataset_mixture"):
            stage["dataset_mixture"] = [smaller(source) for source in sources]
        if "schedule" in keys:
            stage["schedule"] = [{**keys["schedule"][0], "update": -1}]
    chain["evaluation"] |= {"num_problems": 4, "num_generations": 16}
    path = folder / "pipeline.yaml"
    path.write_text(dump_yaml(chain | {"output_dir": str(folder / "run")}), encoding="utf-8")
    return ["--config", str(path)]


def smaller(source: dict[str, Any]) -> dict[str, Any]:
    """Fewer problems, where they are made."""
    made = source.get("dataset_kwargs")
    return {**source, "dataset_kwargs": {**made, "size": 300}} if made else source


@pytest.mark.slow
def test_the_whole_chain_killed_in_the_middle_and_gone_on_with(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(ROOT)
    flags, stages = cut_down(tmp_path), tmp_path / "run" / "seed-0" / "stages"
    process = subprocess.Popen([sys.executable, "-m", "recipes.pipeline", *flags], cwd=ROOT, start_new_session=True)
    while not (stages / "reasoning_rl.json").exists():
        assert process.poll() is None, "the chain ended before its middle"
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert main(flags) == 0

    said = capfd.readouterr().out
    assert "r1_zero (r1_zero) <- world_base: done" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["table_a"]) == ROWS_A and list(summary["table_b"]) == ROWS_B
    columns = load_yaml(SHIPPED.read_text(encoding="utf-8"))["columns"]
    for row in (summary["table_a"] | summary["table_b"]).values():
        assert list(row) == list(columns)
        assert all(figure["low"] <= figure["mean"] <= figure["high"] for figure in row.values())
    assert len(summary["claims"]) == len(load_yaml(SHIPPED.read_text(encoding="utf-8"))["claims"])
    assert len(summary["seconds"]["seed 0"]) == len(list(stages.glob("*.json")))
    page = (tmp_path / "run" / "pipeline.html").read_text()
    assert all(word in page for word in ("world_base", "preference_hacking", "Reward manners", "SFT, then on-policy"))
