"""Every command of the documentation runs: here, small, in a scratch folder; or in the test that the table names."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from grpo import cli
from recipes import demo
from tests.house_rules.pages import PAGES, ROOT, TEXT, blocks, command_blocks, entry_point

R1_ZERO = "recipes.r1_zero --config recipes/configs/tiny_v3/r1_zero.yaml"
QWEN = "recipes.r1_zero --config recipes/configs/qwen2_5_1_5b"
TINY = "--config recipes/configs/tiny_v3"
OWN_DATA = "recipes.r1_zero --config recipes/configs/own_data/r1_zero.yaml --dataset_name problems.jsonl"
RESUMED = "tests/recipes/test_launch.py::test_a_run_and_its_resumption"
CHAINS = list((ROOT / "recipes" / "configs").glob("*/pipeline.yaml"))
REAL_MODEL = "tests/recipes/test_real_model_configs.py::test_"

# What `make -n` has to show for a command, or the Makefile to hold.
MAKE_SHOWS = {
    "make demo": "-m recipes.demo",
    "make test": '-m pytest -q -n 2 --dist loadfile -m "not slow and not gpu"',
    "make test-slow": '-m pytest -q -m "slow and not gpu"',
    "make lint": "ruff check .",
    "make format": "ruff format .",
    "python3 -m venv .venv && source .venv/bin/activate": "python3 -m venv .venv",
    "pip install -e '.[dev]' -c constraints.txt": "-e '.[dev]' -c constraints.txt",
}
# Commands that need several processes, minutes, a file of GSM8K or a model that is not here: the test that runs them.
ELSEWHERE = {
    f"accelerate launch -m {R1_ZERO} --learning_rate 1e-4": RESUMED,
    f"accelerate launch -m {R1_ZERO} --learning_rate 1e-4 --resume auto": RESUMED,
    f"accelerate launch --config_file recipes/accelerate/ddp.yaml -m {R1_ZERO} --output_dir runs/ddp": (
        "tests/grpo/test_launches.py::test_two_processes_share_a_folder_a_signal_and_a_fate"
    ),
    f"accelerate launch --config_file recipes/accelerate/fsdp2.yaml -m {R1_ZERO} --output_dir runs/fsdp2": (
        "tests/recipes/test_launch.py::test_sharded_over_two_processes"
    ),
    "accelerate launch -m recipes.r1_zero --config recipes/configs/tiny_v3/gsm8k_smoke.yaml "
    "--dataset_name gsm8k:path/to/gsm8k_train.jsonl": "tests/recipes/test_gsm8k.py::test_three_real_updates",
    "python -m recipes.pretrain_tiny --config recipes/configs/tiny_v3/pretrain.yaml": (
        "tests/recipes/test_demo_slow.py::test_the_recipe_makes_the_base_again"
    ),
    f"accelerate launch -m recipes.pipeline {TINY}/pipeline.yaml": (
        "tests/recipes/test_whole_recipe.py::test_the_whole_chain_killed_in_the_middle_and_gone_on_with"
    ),
    f"accelerate launch -m recipes.make_cold_start {TINY}/pipeline/make_cold_start.yaml": (
        "tests/recipes/test_sampling_configs.py::test_the_tiny_file_runs"
    ),
    f"accelerate launch -m recipes.rejection_sampling {TINY}/pipeline/rejection_sampling.yaml": (
        "tests/recipes/test_sampling_configs.py::test_the_tiny_file_runs"
    ),
    f"python -m recipes.make_cold_start {TINY}/pipeline/make_cold_start.yaml --from_traces --dataset_name traces.jsonl "
    "--dataset_mixture '[]' --reward_funcs accuracy format --keep_at_least '{format: 1}'": (
        "tests/recipes/test_sampling_configs.py::test_the_tiny_file_takes_traces_as_the_page_says"
    ),
    f"accelerate launch -m recipes.cold_start_sft {TINY}/pipeline/cold_start_sft.yaml": (
        "tests/recipes/test_sft_configs.py::test_a_cold_start_on_gsm8ks_own_solutions"
    ),
    f"accelerate launch -m recipes.second_sft {TINY}/pipeline/second_sft.yaml": (
        "tests/recipes/test_whole_recipe.py::test_the_whole_chain_killed_in_the_middle_and_gone_on_with"
    ),
    f"accelerate launch -m recipes.reasoning_rl {TINY}/pipeline/reasoning_rl.yaml": (
        "tests/recipes/test_rl_stages.py::test_reasoning_rl_trains_on_every_task_and_reports_every_task"
    ),
    f"accelerate launch -m recipes.all_scenarios_rl {TINY}/pipeline/all_scenarios_rl.yaml": (
        "tests/recipes/test_rl_stages.py::test_general_prompts_and_their_reward_come_in_the_last_updates_alone"
    ),
    f"accelerate launch -m recipes.train_preference_model {TINY}/pipeline/train_preference_model.yaml": (
        "tests/recipes/test_whole_recipe.py::test_the_whole_chain_killed_in_the_middle_and_gone_on_with"
    ),
    "python -m recipes.tiny_manners --output_dir runs/manners": (
        "tests/recipes/test_tiny_world.py::test_the_files_of_the_general_task"
    ),
    f"accelerate launch -m recipes.distill {TINY}/pipeline/distill.yaml": (
        "tests/recipes/test_whole_recipe.py::test_the_whole_chain_killed_in_the_middle_and_gone_on_with"
    ),
    f"accelerate launch -m recipes.distill_on_policy {TINY}/pipeline/distill_on_policy.yaml": (
        "tests/recipes/test_whole_recipe.py::test_the_whole_chain_killed_in_the_middle_and_gone_on_with"
    ),
    "python -m recipes.gsm8k_traces --dataset_name gsm8k:path/to/gsm8k_train.jsonl --output_dir runs/gsm8k_traces": (
        "tests/recipes/test_sft_configs.py::test_every_solution_of_gsm8k_is_right_and_well_formed_as_a_trace"
    ),
    f"python -m {OWN_DATA} --model_name_or_path Qwen/Qwen2.5-1.5B": f"{REAL_MODEL}one_update_of_the_family",
    "accelerate launch -m recipes.evaluate --config recipes/configs/tiny_v3/evaluate.yaml": (
        "tests/recipes/test_evaluate.py::test_two_processes_make_the_same_samples"
    ),
    "python -m recipes.evaluate --model_name_or_path 175b_verification --samples "
    "path/to/gsm8k_example_model_solutions.jsonl --samples_prompt_column question --samples_answer_column ground_truth "
    "--samples_completion_columns 175b_verification.solution --samples_correct_columns 175b_verification.is_correct "
    "--reward_funcs '{name: accuracy, marker: \"A:\"}' --output_dir runs/175b": (
        "tests/recipes/test_evaluate.py::test_the_flags_of_real_outputs_are_reproduced"
    ),
    "python -m recipes.pipeline --config recipes/configs/tiny_v3/pipeline.yaml --dry_run": (
        "tests/recipes/test_pipeline.py::test_the_shipped_chain_is_read_to_its_last_stage"
    ),
    "python -m recipes.contamination --train path/to/math_train_7474.json --benchmarks "
    "math500:path/to/math500_test.jsonl --clean runs/clean.jsonl --hits runs/hits.jsonl": (
        "tests/recipes/test_contamination.py::test_real_files_against_a_slow_twin"
    ),
    f"python -m {QWEN}/r1_zero_lora.yaml --dry_run": f"{REAL_MODEL}a_dry_run_at_the_published_sizes",
}
GYM = ["--dataset_kwargs", "{size: 300, min_terms: 3, max_terms: 5, min_digits: 1, max_digits: 1}"]
SMALL = "--problems_per_rollout 2 --num_generations 2 --max_completion_length 8 --max_steps 2 --eval_steps 0 "
SMALL += "--eval_problems 4 --eval_samples 2 --warmup_steps 0"

COMMANDS = {page: [command for block in command_blocks(TEXT[page]) for command in block] for page in PAGES}
RUN_HERE = {
    page: here for page in PAGES if (here := [line for line in COMMANDS[page] if line not in MAKE_SHOWS | ELSEWHERE])
}


@pytest.fixture
def as_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder as a reader of the pages has it: the recipes, the first page's two rows, and a demo that has run."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "problems.jsonl").write_text(blocks(TEXT["README.md"], "json")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert demo.main([*SMALL.split(), *GYM]) == 0


def run(command: str) -> None:
    """Recipes are shortened, but for the lines that are short as they stand (they name their own `--max_steps`)."""
    main, argv = entry_point(shlex.split(command))
    if "--help_all" in argv:
        with pytest.raises(SystemExit, match="0"):
            main(argv)
        return
    if main is not cli.main and "--max_steps" not in argv:
        argv += GYM if "--dry_run" in argv else [*GYM, *SMALL.split()]
    assert main(argv) == 0


@pytest.mark.normal
@pytest.mark.parametrize("page", RUN_HERE)
@pytest.mark.usefixtures("as_a_reader")
def test_the_commands_of_a_page_run_one_after_the_other(page: str, capfd: pytest.CaptureFixture[str]) -> None:
    """In one folder and in the page's order: a line that trains into the folder of a line before it is refused."""
    for command in RUN_HERE[page]:
        capfd.readouterr()
        run(command)
        assert capfd.readouterr().out.strip(), command


def test_every_command_of_the_tables_is_documented() -> None:
    documented = {command for page in PAGES for command in COMMANDS[page]}
    assert [command for command in MAKE_SHOWS | ELSEWHERE if command not in documented] == []


@pytest.mark.parametrize(("command", "test"), ELSEWHERE.items())
def test_the_named_test_exists_and_runs_the_commands_recipe(command: str, test: str) -> None:
    path, _, name = test.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert f"\ndef {name}(" in text
    words = shlex.split(command)
    module = words[words.index("-m") + 1].partition(".")[2]
    assert re.search(rf"\b{module}\b", text), f"{path} does not mention {module}"
    chains = [chain.read_text(encoding="utf-8") for chain in CHAINS if chain.name in text]
    for file in (Path(word) for word in words if word.endswith(".yaml")):
        named = file.stem in text and (file.parent.name != "pipeline" or re.search(r"""['"]pipeline['"]""", text))
        assert named or any(str(file) in chain for chain in chains), f"{path} does not mention {file}"


@pytest.mark.parametrize("command", MAKE_SHOWS)
def test_make_does_what_the_page_says(command: str) -> None:
    target = command.removeprefix("make ") if command.startswith("make ") else "test"
    shown = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert MAKE_SHOWS[command] in shown.stdout


def test_there_is_something_to_run() -> None:
    assert len(RUN_HERE["README.md"]) > 5 and len(RUN_HERE["recipes/README.md"]) > 4
