"""How a run starts, or does not: refused without a trace, finished already, with records of what will come again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import grpo.loop
from grpo.errors import ConfigError, ToolkitError
from grpo.loop import run
from grpo.monitor.metrics import read_metrics
from grpo.prompts import room_notes
from grpo.setup import build_learner
from rewards.rubric import Rubric
from tests.grpo import parts
from tests.grpo.tiny_runs import FULL, config, differences, fresh_run, killed_after, poisoned


@pytest.mark.parametrize(("prompts", "tokens"), [([10, 96], 4000), ([4000], 96)])
def test_what_fits_the_model_is_let_through(tiny_model: Path, prompts: list[int], tokens: int) -> None:
    assert room_notes(parts.config(tiny_model, max_completion_length=tokens), prompts) == []


def test_what_may_not_fit_is_said_and_what_cannot_is_refused(tiny_model: Path) -> None:
    """The tiny model has 4096 positions."""
    [note] = room_notes(parts.config(tiny_model, max_completion_length=4000), [10, 97])
    assert "WARNING" in note and "max_position_embeddings=4096" in note and "max_prompt_length: 96" in note
    with pytest.raises(ConfigError, match=r"max_completion_length: got 4000.*at most 3996"):
        room_notes(parts.config(tiny_model, max_completion_length=4000), [97, 100])


@pytest.mark.parametrize("given", [{"min_lr": 0.0, "min_lr_rate": 0.1}, {"min_lr_ratio": 0.1, "min_lr": 0.0}])
def test_arguments_that_a_schedule_does_not_take_are_named(tiny_model: Path, given: dict[str, float]) -> None:
    cfg = parts.config(tiny_model, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=given)
    with pytest.raises(ConfigError, match=r"lr_scheduler_kwargs: got \{.*cosine_with_min_lr"):
        build_learner(cfg, parts.load(cfg), Rubric.from_config(["format"]), parts.ONE_PROCESS, 10)


@pytest.mark.parametrize(
    "changes", [{"model_name_or_path": "./nowhere"}, {"dataset_name": "./nowhere.jsonl"}, {"reward_funcs": ["nothing"]}]
)
def test_a_refused_run_leaves_no_folder(tiny_model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    run_dir = tmp_path / "runs" / "first"
    with pytest.raises(ToolkitError):
        run(config(tiny_model, run_dir, **changes))
    assert not run_dir.exists()
    run_dir.mkdir(parents=True)  # what was there stays
    with pytest.raises(ToolkitError):
        run(config(tiny_model, run_dir, **changes))
    assert list(run_dir.iterdir()) == []


@pytest.mark.normal
def test_a_finished_run_says_so_and_loads_no_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    cfg = config(tiny_model, run_dir, **FULL, max_steps=2)
    assert fresh_run(cfg) == 0
    lineage = json.loads((run_dir / "final" / "lineage.json").read_text())
    assert lineage["counts"]["updates"] == 2 and lineage["inputs"]["model"]["name"] == str(tiny_model)
    before = read_metrics(run_dir)
    with monkeypatch.context() as patch:
        patch.setattr(grpo.loop, "build_policy", None)
        assert fresh_run(cfg) == 0
    assert f"nothing is left to do: {run_dir} is finished, 2 of 2 updates" in capsys.readouterr().out
    assert read_metrics(run_dir) == before
    assert fresh_run(config(tiny_model, run_dir, **FULL, max_steps=3)) == 0
    assert json.loads((run_dir / "final" / "lineage.json").read_text())["counts"]["updates"] == 3


@pytest.mark.normal
def test_rows_of_refused_updates_are_taken_back_with_their_updates(tiny_model: Path, tmp_path: Path) -> None:
    """Updates 2 and 5 are refused, the run dies after 5 and goes on from 4; the second time 5 is not refused."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with poisoned(2):
        assert fresh_run(config(tiny_model, whole, **FULL)) == 0
    with poisoned(2, 5), killed_after(5):
        fresh_run(config(tiny_model, cut, **FULL))
    rejected = [path.name for path in sorted((cut / "rejected").iterdir())]
    assert rejected == ["step-00000002-rank0.json", "step-00000005-rank0.json"]
    assert fresh_run(config(tiny_model, cut, **FULL)) == 0
    assert [path.name for path in (cut / "rejected").iterdir()] == rejected[:1]
    assert differences(whole, cut) == set()
