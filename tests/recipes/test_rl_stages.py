"""The RL stages behind R1-Zero, cut down: several sources in one run, each row judged by its task's rewards, general
prompts in the last updates alone, resumed after a kill as if nothing had been."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from grpo.config.coerce import dump_yaml, load_yaml
from grpo.config.parse import parse_run_config
from grpo.errors import ConfigError
from grpo.monitor.completions import read_completions
from grpo.monitor.metrics import read_metrics
from recipes import all_scenarios_rl, reasoning_rl
from recipes.lineage import fingerprint_of
from recipes.tiny_manners import requests
from recipes.tuning.sft import require_base
from tests.grpo.tiny_runs import evidence, fresh_run, killed_after

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "tiny_v3" / "pipeline"
REASONING = ("chain_sum", "gcd", "simple_equations")
CUT = {
    "problems_per_rollout": 6, "num_generations": 4, "max_completion_length": 8, "max_steps": 4, "save_steps": 1,
    "eval_steps": 0, "eval_on_start": False, "eval_problems": 8, "eval_samples": 2, "check_rewards": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def general(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, asked = tmp_path_factory.mktemp("general"), [request for request, _ in requests()]
    random.Random(0).shuffle(asked)
    for split, rows in (("train", asked[:30]), ("test", asked[30:40])):
        (folder / f"{split}.jsonl").write_text("".join(f'{{"prompt": "{request}"}}\n' for request in rows))
    return f"{folder}/{{split}}.jsonl"


@pytest.fixture
def shipped(tiny_base: Path, tiny_judge: Path, general: str, tmp_path: Path) -> Any:
    """Writes a shipped recipe with what is large cut down, and what other stages make replaced; returns its flags."""

    def write(stage: str, run_dir: Path, **changes: Any) -> list[str]:
        keys = load_yaml((CONFIGS / f"{stage}.yaml").read_text())
        for source in keys["dataset_mixture"]:
            if "dataset_kwargs" in source:
                source["dataset_kwargs"]["size"] = 200
            else:
                source["dataset_name"] = general
        for line in keys["reward_funcs"]:
            if line["name"] == "preference_model":
                line["model_name_or_path"] = str(tiny_judge)
        if "schedule" in keys:
            keys["schedule"][0]["update"] = -2
        path = tmp_path / f"{stage}.yaml"
        path.write_text(dump_yaml({**keys, "model_name_or_path": str(tiny_base), **CUT, **changes}))
        return ["--config", str(path), "--output_dir", str(run_dir)]

    return write


def tasks_by_update(run_dir: Path) -> dict[int, dict[str, int]]:
    """update -> task -> completions."""
    found: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in read_completions(run_dir):
        found[row["step"]][row["task"]] += 1
    return found


def test_reasoning_rl_trains_on_every_task_and_reports_every_task(shipped: Any, tmp_path: Path) -> None:
    assert reasoning_rl.main(shipped("reasoning_rl", tmp_path / "run", max_steps=1)) == 0
    (update,) = tasks_by_update(tmp_path / "run").values()
    assert update.keys() == set(REASONING) and all(4 <= count <= 12 for count in update.values())
    held_out = read_metrics(tmp_path / "run")[-1]
    per_task = [held_out[f"eval/pass@1/{task}"] for task in REASONING]
    sizes = [held_out[f"eval/problems/{task}"] for task in REASONING]
    assert sum(sizes) == 8 and min(sizes) >= 2
    assert held_out["eval/pass@1"] == pytest.approx(sum(p * n for p, n in zip(per_task, sizes, strict=True)) / 8)


def test_what_a_run_came_from_is_told_once_beside_it_and_in_its_model(
    shipped: Any, tiny_base: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = shipped("reasoning_rl", run_dir, max_steps=1, eval_on_end=False)
    assert reasoning_rl.main(flags) == 0
    text = (run_dir / "lineage.json").read_text()
    made = json.loads(text)
    assert (made["stage"], made["counts"]["updates"], made["config"]["max_steps"]) == ("reasoning_rl", 1, 1)
    assert made["inputs"]["model"] == {"name": str(tiny_base), "sha256": fingerprint_of(tiny_base)}
    assert made["inputs"]["problems 2"]["name"].startswith("gym:") and len(made["counts"]["problems_sha256"]) == 64
    assert reasoning_rl.main([*flags, "--resume", "must"]) == 0  # nothing is left to do
    assert (run_dir / "lineage.json").read_text() == (run_dir / "final" / "lineage.json").read_text() == text
    with pytest.raises(ConfigError, match=f"was made by reasoning_rl from {tiny_base}"):
        require_base(str(run_dir / "final"), "second_sft")


def test_a_run_without_a_recipe_says_whose_model_it_was_too(shipped: Any, tiny_base: Path, tmp_path: Path) -> None:
    cfg = parse_run_config(shipped("reasoning_rl", tmp_path / "run", max_steps=1, eval_on_end=False)).config
    assert fresh_run(cfg) == 0
    with pytest.raises(ConfigError, match=f"was made by reinforcement learning from {tiny_base}"):
        require_base(str(tmp_path / "run" / "final"), "second_sft")


@pytest.mark.normal
def test_general_prompts_and_their_reward_come_in_the_last_updates_alone(
    shipped: Any, tiny_judge: Path, tmp_path: Path
) -> None:
    assert all_scenarios_rl.main(shipped("all_scenarios_rl", tmp_path / "run")) == 0
    by_update = tasks_by_update(tmp_path / "run")
    before, after = [tasks.get("general", 0) for tasks in by_update.values()][:2], [*by_update.values()][2:]
    assert before == [0, 0] and all(8 <= tasks["general"] <= 16 for tasks in after)  # three of six problems
    assert all(sum(tasks.values()) == 24 for tasks in by_update.values())
    lines = load_yaml((CONFIGS / "all_scenarios_rl.yaml").read_text())["reward_funcs"]
    weights = {line["name"]: line.get("weight", 1.0) for line in lines}
    assert weights.keys() == {"gym", "preference_model", "format", "language_consistency"}

    for row in read_completions(tmp_path / "run"):
        is_general = row["task"] == "general"
        assert (row["reward/gym"] is None) is is_general and (row["reward/preference_model"] is None) is not is_general
        assert row["reward/format"] is not None and row["reward/language_consistency"] is not None
        paid = sum(weight * (row[f"reward/{name}"] or 0.0) for name, weight in weights.items())
        assert row["reward"] == pytest.approx(paid, abs=1e-5)
    inputs = json.loads((tmp_path / "run" / "lineage.json").read_text())["inputs"]
    assert inputs["model 2"] == {"name": str(tiny_judge), "sha256": fingerprint_of(tiny_judge)}
    held_out = read_metrics(tmp_path / "run")[-1]
    assert "eval/pass@1/gcd" in held_out and "eval/pass@1/general" not in held_out  # a talk has no right answer
    assert held_out["eval/problems/general"] == 2 and held_out["eval/mean_length/general"] > 0


@pytest.mark.slow
def test_a_kill_on_either_side_of_the_switch_changes_nothing(shipped: Any, tmp_path: Path) -> None:
    straight = parse_run_config(shipped("all_scenarios_rl", tmp_path / "straight")).config
    assert fresh_run(straight) == 0
    flags = shipped("all_scenarios_rl", tmp_path / "killed", resume="auto")
    for update in (2, 3):
        with killed_after(update):
            fresh_run(parse_run_config(flags).config)
    assert fresh_run(parse_run_config(flags).config) == 0
    assert evidence(tmp_path / "straight") == evidence(tmp_path / "killed")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mixture_weights": [1, 1, 1, 1], "reward_funcs": [{"name": "gym", "tasks": [*REASONING]}]}, "task general"),
        ({"reward_funcs": [{"name": "gym", "tasks": [*REASONING]}]}, "from update -2 of the schedule on"),
        ({"reward_funcs": ["format", {"name": "gym", "tasks": ["sums"]}]}, "the task sums, which no problem has"),
        ({"reward_funcs": ["gym"]}, "needs the column gym_entry"),
        ({"mixture_weights": [1, 1]}, "one for each of the 4 sources"),
        ({"schedule": [{"update": -2, "mixture_weights": [0, 0, 0, 0]}]}, "at least one above"),
    ],
)
def test_what_would_leave_rows_without_a_reward_is_refused_at_the_start(
    changes: dict[str, Any], told: str, shipped: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dry_run"] if told == "task general" else []
    assert all_scenarios_rl.main([*shipped("all_scenarios_rl", tmp_path / "run", **changes), *flags]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_other_weights_are_another_run(shipped: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reasoning_rl.main(shipped("reasoning_rl", tmp_path / "run", max_steps=1, eval_on_end=False)) == 0
    keys = load_yaml((tmp_path / "reasoning_rl.yaml").read_text())
    keys["dataset_mixture"][0]["weight"] = 2
    again = shipped("reasoning_rl", tmp_path / "run", **{**keys, "max_steps": 2, "resume": "auto"})
    assert reasoning_rl.main(again) == 2
    assert "the training problems, or their weights, are not those" in capsys.readouterr().err
