"""Rows that a stage holds out: read only where their loss is asked for, part of its lineage, free on a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.distributed import Dist
from grpo.errors import CheckpointError
from recipes.lineage import fingerprint_of
from recipes.tuning.trainer_run import TunedOutputConfig, resume_point
from tests.recipes.test_sft import tune


def write(path: Path, numbers: range) -> Path:
    lines = (json.dumps({"prompt": f"{n} + 1", "completion": str(n + 1)}) for n in numbers)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_they_are_read_where_their_loss_is_asked_for_and_a_resume_may_change_them(
    tiny_base: Path, tmp_path: Path
) -> None:
    trained, run_dir = write(tmp_path / "train.jsonl", range(8)), tmp_path / "run"

    def made(more: str) -> dict[str, Any]:
        assert tune(tiny_base, tmp_path / "{split}.jsonl", run_dir, f"--max_steps 1 {more}") == 0
        return json.loads((run_dir / "final" / "lineage.json").read_text())

    first = made("--dataset_test_split missing --eval_strategy no")
    assert len(list((run_dir / "tokens").glob("*.arrow"))) == 1
    assert first["inputs"].keys() == {"model", "data"} and first["config"]["dataset_test_split"] == "missing"
    assert first["inputs"]["data"] == {"name": str(trained), "sha256": fingerprint_of(trained)}
    later = write(tmp_path / "later.jsonl", range(20, 24))
    second = made("--dataset_test_split later --eval_on_start true --resume must")
    assert second["inputs"]["held_out"] == {"name": str(later), "sha256": fingerprint_of(later)}
    assert second["config"]["dataset_test_split"] == "later" and second["counts"]["held_out"] == 4


def test_a_resume_compares_what_is_trained_on(tmp_path: Path) -> None:
    then = {"dataset_test_split": None, "dataset_mixture": [{"dataset_name": "a", "dataset_test_split": "test"}]}
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps(then))
    output, dist = TunedOutputConfig(output_dir=str(tmp_path), resume="must"), Dist(device=torch.device("cpu"))
    now = {"dataset_test_split": "later", "dataset_mixture": [{"dataset_name": "a"}]}
    assert resume_point(output, now, dist) == tmp_path / "checkpoint-1"
    with pytest.raises(CheckpointError, match=r"dataset_mixture: .*'a'.* then, now .*'b'"):
        resume_point(output, now | {"dataset_mixture": [{"dataset_name": "b"}]}, dist)
