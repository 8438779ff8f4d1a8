"""Every command and snippet of the documentation runs in a test, or says in the text why it does not."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from grpo.config.parse import parse_flat
from recipes import r1_zero
from recipes.pretrain_tiny import FOUNDATION, TinyBaseConfig
from recipes.tiny_corpus import Mixture

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md")
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
R1_ZERO = "-m recipes.r1_zero --config recipes/configs/tiny_v3/r1_zero.yaml"

MAKE, DRY_RUN = "what make would do is looked at here", "run here, as a dry run on small data"
# Command -> how it is tested: one of the two above, or the test that runs it.
COMMANDS: dict[str, str] = {
    "make demo": MAKE,
    "make test": MAKE,
    "make test-slow": MAKE,
    "make lint": MAKE,
    "make format": MAKE,
    "python3 -m venv .venv && source .venv/bin/activate": MAKE,
    "pip install -e '.[dev]' -c constraints.txt": MAKE,
    ".venv/bin/grpo show runs/demo": "tests/recipes/test_demo.py::test_the_pager_and_the_report_work_on_the_run",
    "grpo report runs/demo": "tests/recipes/test_demo.py::test_the_pager_and_the_report_work_on_the_run",
    "grpo show runs/demo --step 40": "tests/recipes/test_demo.py::test_the_pager_and_the_report_work_on_the_run",
    f"accelerate launch {R1_ZERO}": DRY_RUN,
    f"accelerate launch {R1_ZERO} --dry_run": DRY_RUN,
    f"accelerate launch {R1_ZERO} --preset dapo --dry_run": DRY_RUN,
    f"accelerate launch {R1_ZERO} --reward_funcs '[{{name: gym, require_format: true}}, "
    '{name: "recipes.example_reward:terse", weight: 0.1}]\'': DRY_RUN,
    "python -m recipes.r1_zero --help_all": DRY_RUN,
    f"accelerate launch --config_file recipes/accelerate/cpu.yaml {R1_ZERO}": DRY_RUN,
    f"accelerate launch {R1_ZERO} --learning_rate 1e-4": "tests/recipes/test_launch.py::test_a_run_and_its_resumption",
    f"accelerate launch {R1_ZERO} --learning_rate 1e-4 --resume auto": (
        "tests/recipes/test_launch.py::test_a_run_and_its_resumption"
    ),
    f"accelerate launch --config_file recipes/accelerate/ddp.yaml {R1_ZERO}": (
        "tests/grpo/test_launches.py::test_two_processes_share_a_folder_a_signal_and_a_fate"
    ),
    f"accelerate launch --config_file recipes/accelerate/fsdp2.yaml {R1_ZERO}": (
        "tests/recipes/test_launch.py::test_sharded_over_two_processes"
    ),
    "accelerate launch -m recipes.r1_zero --config recipes/configs/tiny_v3/gsm8k_smoke.yaml "
    "--dataset_name gsm8k:path/to/gsm8k_train.jsonl": "tests/recipes/test_gsm8k.py::test_three_real_updates",
    "python -m recipes.demo --seed 1": "tests/recipes/test_demo_slow.py::test_three_seeds",
    "python -m recipes.pretrain_tiny --config recipes/configs/tiny_v3/pretrain.yaml": (
        "tests/recipes/test_demo_slow.py::test_the_recipe_makes_the_base_again"
    ),
}
MAKE_SHOWS = {
    "make demo": "-m recipes.demo",
    "make test": '-m pytest -q -m "not slow and not gpu"',
    "make test-slow": '-m pytest -q -m "slow and not gpu"',
    "make lint": "ruff check .",
    "make format": "ruff format .",
    "python3 -m venv .venv && source .venv/bin/activate": "python3 -m venv .venv",
    "pip install -e '.[dev]' -c constraints.txt": "-e '.[dev]' -c constraints.txt",
}
SMALL = ["--dataset_kwargs", "{size: 300, min_terms: 3, max_terms: 5, min_digits: 1, max_digits: 1}"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT[page], re.MULTILINE | re.DOTALL)


def documented_commands() -> set[str]:
    """The lines of all bash blocks but those under `<!-- not run in tests: reason -->`."""
    tested = {page: re.sub(r"<!-- not run in tests: .+ -->\n```bash\n(?s:.*?)^```$", "", text, flags=re.MULTILINE)
              for page, text in TEXT.items()}  # fmt: skip
    found = [re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for text in tested.values()]
    return {line for page in found for block in page for line in block.replace("\\\n", "").splitlines() if line}


def test_every_documented_command_is_in_the_table_and_the_other_way_round() -> None:
    assert documented_commands() == set(COMMANDS)


def test_the_tests_that_the_table_names_exist() -> None:
    for how in set(COMMANDS.values()) - {MAKE, DRY_RUN}:
        path, _, name = how.partition("::")
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), how


@pytest.mark.parametrize("command", [command for command, how in COMMANDS.items() if how == MAKE])
def test_make_does_what_the_page_says(command: str) -> None:
    target = command.removeprefix("make ") if command.startswith("make ") else "demo"
    shown = subprocess.run(["make", "-n", "-B", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert MAKE_SHOWS[command] in shown.stdout


@pytest.mark.parametrize("command", [command for command, how in COMMANDS.items() if how == DRY_RUN])
def test_a_command_goes_through_a_dry_run(
    command: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    _, _, arguments = command.partition("-m recipes.r1_zero ")
    argv = [*shlex.split(arguments), *SMALL, "--model_name_or_path", str(tiny_model), "--dry_run"]
    with contextlib.suppress(SystemExit):  # --help_all leaves with status 0
        assert r1_zero.main(argv) == 0
    shown = capsys.readouterr().out
    assert "WARNING" not in shown
    assert ("=== plan" in shown) is ("--help_all" not in command)


@pytest.mark.parametrize("page", PAGES)
def test_python_snippets_are_files_or_print_what_the_page_shows(page: str) -> None:
    for snippet, after in re.findall(r"```python\n(.*?)^```\n(.*?)(?=^```python|\Z)", TEXT[page], re.M | re.S):
        first, _, rest = snippet.partition("\n")
        if first.startswith("# ") and first.endswith(".py"):
            assert rest == (ROOT / first.removeprefix("# ")).read_text(encoding="utf-8")
            continue
        shown = re.match(r"\s*```text\n(.*?)^```$", after, re.M | re.S)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(snippet, page, "exec"), {})
        assert shown and printed.getvalue() == shown[1]


def test_there_is_something_to_run() -> None:
    assert len(blocks("README.md", "python")) == 2 and len(blocks("README.md", "bash")) > 8


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_exists(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT[page])
    assert [
        link for link in links if not link.startswith("http") and not (ROOT / page).parent.joinpath(link).exists()
    ] == []
    files = re.findall(r"`((?:tests|recipes|grpo|rewards|data)/[\w./]+\.(?:py|yaml|md))`", TEXT[page])
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_recipes_page_states_what_the_code_does_and_the_base_achieved() -> None:
    page, mixture = TEXT["recipes/README.md"], Mixture()
    guesses = 1 - mixture.careful - mixture.careless
    for kind, share in {"careful": mixture.careful, "careless": mixture.careless, "a guess": guesses}.items():
        assert re.search(rf"^\| {kind}\b[^|]*\| {100 * share:.0f} % \|", page, re.MULTILINE), kind
    assert f"in {100 * mixture.slip:.0f} % of the cases" in page and mixture.untagged == 0.5
    config = parse_flat(["--config", str(ROOT / "recipes" / "configs" / "tiny_v3" / "pretrain.yaml")], TinyBaseConfig)
    assert f"The first {100 * config.train.foundation_share:.0f} % of its training" in page
    assert f"({100 * FOUNDATION.careful:.0f} % careful, {100 * FOUNDATION.careless:.0f} % careless)" in page

    record = ROOT / "recipes" / "configs" / "tiny_v3" / "base" / "pretraining.json"
    base = json.loads(record.read_text(encoding="utf-8"))["held_out"]
    shares = " | ".join(f"{base[name]:.3f}" for name in ("pass@1", "pass@8", "maj@16", "format_rate"))
    assert f"| {shares} | {base['mean_length']:.1f} |" in page


@pytest.mark.parametrize("page", PAGES)
def test_no_place_is_left_to_be_filled_in(page: str) -> None:
    assert "TODO" not in TEXT[page]
