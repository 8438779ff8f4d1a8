"""Every YAML file under recipes/ is read by the parser of the recipe it names, and what it refers to exists."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from data.functions import named_function
from grpo.config.parse import parse_flat, parse_run_config
from grpo.errors import ConfigError
from grpo.scoring import build_rubric
from recipes import cold_start_sft, distill, second_sft, train_preference_model
from recipes.distill_on_policy import parse as parse_on_policy
from recipes.make_cold_start import ColdStartConfig
from recipes.rejection_sampling import RejectionSamplingConfig
from recipes.rows.make_rows import check_keep
from recipes.rows.sources import as_run
from rewards.rubric import Rubric

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
LAUNCH_FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
COMMAND = re.compile(r"^#   (?:accelerate launch(?: --\w+ \S+)*|python) -m recipes\.(\w+) --config (\S+)", re.MULTILINE)
PROCESSES = {"cpu": 1, "ddp": 2, "fsdp2": 2, "fsdp2_trainer": 2, "fsdp2_nodes": 512}
BLANKS = {
    "model_name_or_path": "a-model",
    "dataset_name": "problems.jsonl",
}  # what the file for one's own data leaves open


def parse_rl(argv: Sequence[str]) -> Any:
    parsed = parse_run_config(argv)
    assert not parsed.report.not_yet
    Rubric.from_config([line for line in parsed.config.rewards.reward_funcs if not waits_for_a_stage(line)])
    return parsed.config


def sampling_stage(argv: Sequence[str], root: type) -> Any:
    config = parse_flat(argv, root)
    if not any(map(waits_for_a_stage, config.rewards.reward_funcs)):
        check_keep(config.keep, build_rubric(as_run(config).rewards))
    return config


def waits_for_a_stage(line: Any) -> bool:
    """Whether a reward is a model that another stage makes."""
    return isinstance(line, dict) and str(line.get("model_name_or_path")).startswith("runs/")


PARSERS: dict[str, Callable[[Sequence[str]], Any]] = {
    "cold_start_sft": lambda argv: cold_start_sft.parse(argv).config,
    "second_sft": lambda argv: second_sft.parse(argv).config,
    "distill": lambda argv: distill.parse(argv).config,
    "distill_on_policy": lambda argv: parse_on_policy(argv).config,
    "train_preference_model": lambda argv: train_preference_model.parse(argv).config,
    "make_cold_start": lambda argv: sampling_stage(argv, ColdStartConfig),
    "rejection_sampling": lambda argv: sampling_stage(argv, RejectionSamplingConfig),
    "r1_zero": parse_rl,
    "reasoning_rl": parse_rl,
    "all_scenarios_rl": parse_rl,
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blanks(path: Path) -> list[str]:
    return [word for key, value in BLANKS.items() for word in (f"--{key}", value) if path.parent.name == "own_data"]


def test_there_are_recipes() -> None:
    assert len(CONFIGS) >= 6
    assert sorted(path.stem for path in LAUNCH_FILES) == sorted(PROCESSES)


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_a_config_names_its_command_and_the_commands_parser_takes_it(path: Path) -> None:
    commands = COMMAND.findall(path.read_text(encoding="utf-8"))
    assert commands and {config for _, config in commands} == {relative(path)}
    for recipe, _ in commands:
        parse = PARSERS.get(recipe) or import_module(f"recipes.{recipe}").parse
        config = parse(["--config", str(path), *blanks(path)])
        if name := getattr(getattr(config, "data", None), "dataset_filter", None):
            named_function(name, key="dataset_filter")


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=relative)
def test_a_launch_file_is_read_by_accelerate_and_names_its_command(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == PROCESSES[path.stem]
    assert config.use_cpu is (path.stem == "cpu")  # the others take GPUs where there are some, and gloo where not
    assert f"accelerate launch --config_file {relative(path)} -m recipes." in path.read_text(encoding="utf-8")


def test_the_file_for_ones_own_data_leaves_nothing_else_open_and_says_what_is_missing() -> None:
    path = next(path for path in CONFIGS if path.parent.name == "own_data")
    flags = blanks(path)
    for position, key in enumerate(BLANKS):
        left = flags[: 2 * position] + flags[2 * position + 2 :]
        with pytest.raises(ConfigError, match=f"{key} is required"):
            parse_rl(["--config", str(path), *left])


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_what_was_never_run_says_so_in_the_file(path: Path) -> None:
    """The tiny recipes were run; what starts from a real model was not."""
    assert ("NOT RUN AT SIZE" in path.read_text(encoding="utf-8")) is ("tiny_v3" not in path.parts)
