"""What the pages show, state and point to is so."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from grpo.config.parse import parse_flat
from recipes import r1_zero
from recipes.pretrain_tiny import FOUNDATION, TinyBaseConfig
from recipes.tiny_corpus import Mixture
from rewards.format import is_well_formed
from rewards.math.extract import extract_answer
from rewards.registry import BUILT_IN
from tests.house_rules.pages import PAGES, ROOT, TEXT, blocks
from tests.house_rules.sources import PACKAGES

SNIPPET = re.compile(r"```python\n(.*?)^```\n(?:\s*```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
SNIPPETS = [(page, *found) for page in PAGES for found in SNIPPET.findall(TEXT[page])]
BASE = ROOT / "recipes" / "configs" / "tiny_v3" / "base"


def printed_by(snippet: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "page", "exec"), {})
    return printed.getvalue()


@pytest.mark.parametrize(("page", "snippet", "shown"), SNIPPETS, ids=[page for page, *_ in SNIPPETS])
def test_a_python_snippet_is_a_file_or_prints_what_the_page_shows(
    page: str, snippet: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, rest = snippet.partition("\n")
    if first.startswith("# ") and first.endswith(".py"):
        assert rest == (ROOT / first.removeprefix("# ")).read_text(encoding="utf-8")
    elif "runs/demo/final" not in snippet:
        assert printed_by(snippet) == shown
    else:  # the demo's model; the base, which it grew out of, writes something else in the same form
        (tmp_path / "runs" / "demo").mkdir(parents=True)
        (tmp_path / "runs" / "demo" / "final").symlink_to(BASE)
        monkeypatch.chdir(tmp_path)
        completion, answer = printed_by(snippet).splitlines()
        assert is_well_formed(completion) and extract_answer(completion) == answer
        assert is_well_formed(shown.splitlines()[0]) and extract_answer(shown) == shown.splitlines()[1] == "9"


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 3


def test_the_dry_run_prints_the_lines_that_the_page_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    shown = next(block for block in blocks(TEXT["README.md"], "text") if block.startswith("=== keys"))
    assert r1_zero.main(["--config", "recipes/configs/tiny_v3/r1_zero.yaml", "--dry_run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    positions = [printed.index(line) for line in shown.splitlines()]
    assert positions == sorted(positions) and len(positions) > 8


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_exists(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT[page])
    assert [
        link for link in links if not link.startswith("http") and not (ROOT / page).parent.joinpath(link).exists()
    ] == []
    files = re.findall(r"`((?:tests|recipes|grpo|rewards|data)/[\w./]+\.(?:py|yaml|md))`", TEXT[page])
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_first_page_lists_the_rewards_that_there_are() -> None:
    section = TEXT["README.md"].partition("\n## Rewards\n")[2].partition("\n### ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert listed and set(listed) <= set(BUILT_IN)
    assert [name for name in BUILT_IN if f"`{name}`" not in section] == []


def test_the_recipes_page_states_what_the_code_does_and_the_base_achieved() -> None:
    page, mixture = TEXT["recipes/README.md"], Mixture()
    guesses = 1 - mixture.careful - mixture.careless
    for kind, share in {"careful": mixture.careful, "careless": mixture.careless, "a guess": guesses}.items():
        assert re.search(rf"^\| {kind}\b[^|]*\| {100 * share:.0f} % \|", page, re.MULTILINE), kind
    assert f"in {100 * mixture.slip:.0f} % of the cases" in page and mixture.untagged == 0.5
    config = parse_flat(["--config", str(BASE.parent / "pretrain.yaml")], TinyBaseConfig)
    assert f"The first {100 * config.train.foundation_share:.0f} % of its training" in page
    assert f"({100 * FOUNDATION.careful:.0f} % careful, {100 * FOUNDATION.careless:.0f} % careless)" in page

    base = json.loads((BASE / "pretraining.json").read_text(encoding="utf-8"))["held_out"]
    shares = " | ".join(f"{base[name]:.3f}" for name in ("pass@1", "pass@8", "maj@16", "format_rate"))
    assert f"| {shares} | {base['mean_length']:.1f} |" in page


FOLDERS = (*PACKAGES, "tests/benchmarks")
EVERYWHERE = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]


@pytest.mark.parametrize("page", EVERYWHERE, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_place_is_left_to_be_filled_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not [word for word in ("TODO", "PLACEHOLDER", "not measured yet") if word in text]
