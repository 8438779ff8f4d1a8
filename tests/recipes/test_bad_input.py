"""What people get wrong, at every stage: said before any work, and nothing that was there is lost."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.http_server import Server

RL = {"reward_funcs": "[accuracy, format]", "problems_per_rollout": 1, "num_generations": 2, "max_steps": 1}
SAMPLED = {"reward_funcs": "[accuracy, format]", "num_generations": 2, "problems_per_shard": 2}
ASKED = {"max_completion_length": 4, "prompt_template": "chat"}  # by the stages that sample
STAGES: dict[str, dict[str, Any]] = {
    "r1_zero": {**ASKED, **RL},
    "all_scenarios_rl": {**ASKED, **RL},
    "make_cold_start": {**ASKED, **SAMPLED},
    "rejection_sampling": {**ASKED, **SAMPLED},
    "evaluate": {**ASKED, "num_generations": 2},
    "distill_on_policy": {**ASKED, "max_steps": 1},
    "cold_start_sft": {"max_length": 64, "max_steps": 1},
    "distill": {"max_length": 64, "max_steps": 1},
    "train_preference_model": {"max_length": 64, "max_steps": 1, "dataset_test_split": "null"},
}
ROW = {"prompt": "What is 1 + 1?", "answer": "2", "completion": "2", "chosen": "2", "rejected": "3"}  # fits them all


@pytest.fixture
def refused(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Starts a stage with one thing changed; it has to end with exit code 2, these words, and no work done."""

    def start(stage: str, told: str, row: Mapping[str, Any] = ROW, **changed: Any) -> None:
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        given = {"model_name_or_path": tiny_base, "dataset_name": tmp_path / "rows.jsonl", **STAGES[stage], **changed}
        if stage == "distill_on_policy":
            given = {"teacher_model_name_or_path": tiny_base, **given}
        words = [f"--{key}={value}" for key, value in given.items()]
        assert import_module(f"recipes.{stage}").main([*words, f"--output_dir={tmp_path / 'run'}"]) == 2
        assert re.search(told, capsys.readouterr().err, re.DOTALL)
        worked = ("metrics.jsonl", "train-*", "final", "completions", "checkpoint*")
        assert not [path for pattern in worked for path in (tmp_path / "run").rglob(pattern)]

    return start


MISSING = {  # a row -> what the stage says of it
    "r1_zero": ({"question": "Q", "answer": "2"}, r"no value in column 'prompt' \(the row has: question, answer\)"),
    "all_scenarios_rl": ({"prompt": "Q"}, r"no value in column 'answer' .*dataset_answer_column"),
    "make_cold_start": ({"prompt": "Q", "gold": "2"}, r"no value in column 'answer' \(the row has: prompt, gold\)"),
    "rejection_sampling": ({"answer": "2"}, "no value in column 'prompt'.*dataset_prompt_column"),
    "evaluate": ({"answer": "2"}, "no value in column 'prompt'"),
    "distill_on_policy": ({"question": "Q"}, "no value in column 'prompt'"),
    "cold_start_sft": ({"prompt": "Q", "text": "A"}, "Its columns are prompt, text; needed are `prompt`"),
    "distill": ({"completion": "A"}, "Its columns are completion; needed are `prompt`"),
    "train_preference_model": ({"prompt": "Q", "chosen": "A"}, "no value in column rejected"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_column_is_named(stage: str, refused: Callable[..., None]) -> None:
    row, told = MISSING[stage]
    refused(stage, told, row=row)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "train_preference_model"])  # it asks nobody
def test_a_template_without_a_generation_prompt_is_named(
    stage: str, refused: Callable[..., None], tiny_base: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_base, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text()
    assert "{% if add_generation_prompt" in template
    (model / "chat_template.jinja").write_text(template.partition("{% if add_generation_prompt")[0])
    row = {**ROW, "prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}
    refused(stage, "no generation prompt.*'Assistant:'.*chat_template", row=row, model_name_or_path=model)


def other_shape(model: Path) -> None:
    settings(model, hidden_size=32)


def more_layers(model: Path) -> None:
    settings(model, num_hidden_layers=5)


def unknown_kind(model: Path) -> None:
    settings(model, model_type="nonesuch")


def no_language_model(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))


def reads_with_an_encoder(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "t5"}))


def torn_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"half of a file")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def settings(model: Path, **changed: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


WRONG: dict[Callable[[Path], None], str] = {
    other_shape: "lack [0-9]+ that its config.json asks for.*another architecture",
    more_layers: r"lack [0-9]+ that its config.json asks for.*model.layers.3\.",
    unknown_kind: "nonesuch",
    no_language_model: "clip_vision_model, which is no causal|cannot be loaded as a classifier.*CLIPVisionConfig",
    reads_with_an_encoder: "t5, which is no causal|t5 reads with an encoder",
    torn_weights: "Error while deserializing header",
    no_weights: "no file named model.safetensors",
}


@pytest.mark.parametrize("spoil", WRONG)
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_another_architecture_or_half_of_one_is_named(
    stage: str, spoil: Callable[[Path], None], refused: Callable[..., None], tiny_base: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_base, tmp_path / "model")
    spoil(model)
    refused(stage, f"ConfigError: model_name_or_path.*{WRONG[spoil]}", model_name_or_path=model)


def nothing(problem: Any) -> bool:
    """A filter that keeps no problem."""
    return False


NONE_LEFT = {"dataset_filter": f"{__name__}:nothing"}
TOO_SHORT = {"max_length": 2}


@pytest.mark.parametrize("stage", STAGES)
def test_an_empty_set_after_filtering_is_named(stage: str, refused: Callable[..., None]) -> None:
    if "prompt_template" in STAGES[stage]:
        refused(stage, "no problem is left.*1 rows read, 0 problems kept", **NONE_LEFT)
    else:
        refused(stage, "no row is left to train on|every pair of train has a conversation over", **TOO_SHORT)


@pytest.mark.normal  # six seconds of further tries
def test_a_teacher_that_is_down_is_named_and_what_it_said_before_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps(ROW) + "\n")
    teacher = import_module("recipes.teacher_traces").main
    given = f"--teacher_model big --num_generations 1 --dataset_name {tmp_path / 'one.jsonl'} --output_dir "
    with Server() as server:
        server.answer(lambda handler, request: handler.say("2", "big"))
        assert teacher(f"{given}{tmp_path / 'rows'} --teacher_url {server.url}".split()) == 0
        url = server.url
    there = {path: path.read_bytes() for path in (tmp_path / "rows").rglob("*.parquet")}
    assert there
    capsys.readouterr()
    for folder, more in (("fresh", ""), ("rows", "--resume must --max_completion_length 9")):
        assert teacher(f"{given}{tmp_path / folder} --teacher_url {url} {more}".split()) == 2
    told = capsys.readouterr().err
    assert f"the server at {url} does not answer for the model 'big'" in told and "Start it" in told
    assert not list((tmp_path / "fresh").rglob("*.parquet"))
    assert {path: path.read_bytes() for path in (tmp_path / "rows").rglob("*.parquet")} == there
