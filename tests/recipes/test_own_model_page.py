"""The page for those who bring a model and data: its commands, in its order, from the two files that it writes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from grpo.monitor.metrics import read_metrics
from tests.house_rules.pages import ROOT, blocks, run_page

PAGE = (ROOT / "recipes" / "own_model.md").read_text(encoding="utf-8")


@pytest.mark.normal
def test_the_page_runs_from_a_file_to_a_curve_and_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as for `python -m`
    problems, reward = blocks(PAGE, "python")
    exec(compile(problems, "page", "exec"), {})
    (tmp_path / "my_reward.py").write_text(reward)
    assert run_page(PAGE) == 8
    sys.modules.pop("my_reward")
    curve = [line["eval/pass@1"] for line in read_metrics(Path("runs/mine")) if "eval/pass@1" in line]
    claimed = [
        float(number) for number in re.findall(r"0\.\d{3}", PAGE.partition("Measured so")[2].partition("in 37 s")[0])
    ]
    assert curve == pytest.approx(claimed, abs=0.1)  # another processor draws other samples
    assert curve[-1] > curve[0] + 0.3
    ends = [json.loads(Path(f"runs/{name}/summary.json").read_text()) for name in ("before", "after")]
    shares = [end["benchmarks"]["problems_test"]["figures"]["pass@1"]["mean"] for end in ends]
    assert shares == pytest.approx([0.385, 0.877], abs=0.1)
    assert "problems_test" in capsys.readouterr().out


def test_what_the_page_points_to_exists() -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAGE)]
    assert links and all((ROOT / "recipes" / link).exists() for link in links)
    assert all((ROOT / path).exists() for path in re.findall(r"(?:recipes|tests)/[\w/]+\.(?:yaml|py)", PAGE))
