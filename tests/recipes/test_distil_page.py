"""The page for those who distil: its commands, in its order, from its trace file."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests.house_rules.pages import ROOT, blocks, run_page

PAGE = (ROOT / "recipes" / "distil.md").read_text(encoding="utf-8")


@pytest.mark.normal
def test_the_page_runs_from_a_trace_file_to_a_student_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "traces.jsonl").write_text(blocks(PAGE, "json")[0], encoding="utf-8")
    assert run_page(PAGE) == 6
    shown, (counts, said) = capsys.readouterr().out, blocks(PAGE, "text")
    assert counts in shown
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks(PAGE, "python")[0], "page", "exec"), {})
    assert printed.getvalue() == said


def test_what_the_page_points_to_exists() -> None:
    for path in re.findall(r"`(configs/[\w/]+\.yaml)`", PAGE):
        assert (ROOT / "recipes" / path).exists()
    for module in re.findall(r"`(recipes\.\w+)`", PAGE):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    for path in re.findall(r"tests/[\w/]+\.py", PAGE):
        assert (ROOT / path).exists()
