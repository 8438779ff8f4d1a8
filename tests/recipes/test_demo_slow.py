"""What the first page claims: three seeds of the full demo, and the recipe that makes the base again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1, 2)

pytestmark = pytest.mark.slow


def run_recipe(*words: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    subprocess.run([sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment, check=True, timeout=3600)


def test_three_seeds(tiny_base: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        run_recipe("recipes.demo", "--seed", seed, "--output_dir", tmp_path / str(seed))
    summaries = [json.loads((tmp_path / str(seed) / "summary.json").read_text()) for seed in SEEDS]
    print("\nseed  pass@1          pass@8          maj@16          mean length     seconds")
    for seed, summary in zip(SEEDS, summaries, strict=True):
        before, after = summary["before"], summary["after"]
        pairs = [f"{before[key]:.3f} -> {after[key]:.3f}" for key in ("pass@1", "pass@8", "maj@16")]
        lengths = f"{before['mean_length']:.1f} -> {after['mean_length']:.1f}"
        print(f"{seed:>4}  {'  '.join(pairs)}  {lengths:<14}  {summary['seconds']['total']:.0f}")
    after = [summary["after"]["pass@1"] for summary in summaries]
    assert all(s["after"]["problems"] >= 256 and s["after"]["samples"] == 16 for s in summaries)
    assert all(0.05 <= s["before"]["pass@1"] <= 0.35 and s["before"]["pass@8"] > 0.7 for s in summaries)
    assert median(after) >= 0.90 and min(after) >= 0.80
    assert all(s["after"]["mean_length"] > s["before"]["mean_length"] for s in summaries)


def test_the_recipe_makes_the_base_again(tmp_path: Path) -> None:
    config = ROOT / "recipes" / "configs" / "tiny_v3" / "pretrain.yaml"
    run_recipe("recipes.pretrain_tiny", "--config", config, "--output_dir", tmp_path)
    figures = json.loads((tmp_path / "pretraining.json").read_text())["held_out"]
    shipped = json.loads((ROOT / "recipes" / "configs" / "tiny_v3" / "base" / "pretraining.json").read_text())[
        "held_out"
    ]
    print(f"\nbase: {figures}\nshipped: {shipped}")
    assert figures["pass@1"] == pytest.approx(shipped["pass@1"], abs=0.03)
    assert figures["pass@8"] == pytest.approx(shipped["pass@8"], abs=0.05)
    assert 0.05 <= figures["pass@1"] <= 0.35 and figures["pass@8"] > 0.7
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 2**20
