"""The shipped models of the tiny world: made by the files beside them, and as good as they are said to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from recipes.pretrain_tiny import parse
from recipes.tiny_manners import main as write_manners

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "configs" / "tiny_v3"
FILES = {"world_base": "base.yaml", "world_student": "student_base.yaml"}


def recorded(model: str) -> dict[str, Any]:
    return json.loads((TINY / model / "pretraining.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("model", FILES)
def test_a_shipped_model_was_made_by_its_file(model: str) -> None:
    cfg = asdict(parse(["--config", str(TINY / "pipeline" / FILES[model])]))
    assert recorded(model)["config"] == json.loads(json.dumps(cfg))


def test_they_can_reason_and_mostly_do_not_and_the_student_less() -> None:
    base, student = (recorded(model)["held_out"] for model in FILES)
    assert base["pass@1"] < 0.4 and base["pass@8"] > 0.7
    assert student["pass@1"] < base["pass@1"] and student["pass@8"] < base["pass@8"]
    for model in FILES:
        assert sum(path.stat().st_size for path in (TINY / model).iterdir()) <= 2 * 2**20


@pytest.mark.slow
def test_the_recipe_makes_the_student_again(tmp_path: Path) -> None:
    """As test_demo_slow.py does for the demo's base; the world's base is the same code and four times as long."""
    write_manners(["--output_dir", str(tmp_path / "manners")])
    text = (TINY / "pipeline" / "student_base.yaml").read_text(encoding="utf-8")
    config = tmp_path / "student.yaml"
    config.write_text(text.replace("runs/manners", str(tmp_path / "manners")), encoding="utf-8")
    command = ["-m", "recipes.pretrain_tiny", "--config", str(config), "--output_dir", str(tmp_path / "student")]
    subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ, check=True, timeout=3600)
    made = json.loads((tmp_path / "student" / "pretraining.json").read_text())["held_out"]
    shipped = recorded("world_student")["held_out"]
    print(f"\nstudent: {made}\nshipped: {shipped}")
    assert made["pass@1"] == pytest.approx(shipped["pass@1"], abs=0.04)
    assert made["pass@8"] == pytest.approx(shipped["pass@8"], abs=0.06)
