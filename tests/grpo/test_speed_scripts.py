"""The benchmark scripts in their smallest size: they run, both trainers did the same work, the JSON has its keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.policy.tiny_v3 import build_tokenizer
from tests.benchmarks.workload import SIZES, Workload, build_model, force_lengths

ROOT = Path(__file__).parents[2]
MILLIONS = {("v3", "cpu"): 6, ("qwen3", "cpu"): 6, ("v3", "cuda"): 1000, ("qwen3", "cuda"): 1300}


def result_of(script: str, folder: Path, *flags: str) -> Any:
    """What the script writes, run in a process of its own."""
    path = folder / "result.json"
    command = [sys.executable, "-m", f"tests.benchmarks.{script}", "--quick", "--json", str(path), *flags]
    ran = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.normal
def test_grpo_step(tmp_path: Path) -> None:
    """That both sides sampled the same number of tokens, earned the same rewards and took one optimizer step, every row
    in it, is asserted inside."""
    result = result_of("grpo_step", tmp_path, "--repeats", "2")
    assert result["agreement"].keys() == {"loss", "grad"}
    assert max(result["agreement"].values()) < 1e-5
    phases = {"sampling", "scoring", "update", "step"}
    assert result["ratio"].keys() == phases
    for name in ("ours", "trl", "unshared"):
        assert result["seconds"][name].keys() == phases
        parts = sum(result["seconds"][name][phase] for phase in phases - {"step"})
        assert 0 < result["seconds"][name]["sampling"] < result["seconds"][name]["step"]
        assert parts == pytest.approx(result["seconds"][name]["step"], rel=0.5)  # medians of two, phase by phase
        assert result["tokens_per_s"][name] > 0 and result["peak_mb"][name] > 0
        low, high = result["spread"][name]["step"]
        assert low <= result["seconds"][name]["step"] <= high
    workload = Workload.draw(groups=2, size=4, prompt=12, completion=16)
    assert result["setting"]["tokens"] == workload.tokens


@pytest.mark.normal
def test_cost_of_work(tmp_path: Path) -> None:
    found = result_of("cost_of_work", tmp_path)
    assert [(point["group"], point["prompt"]) for point in found] == [(2, 8), (4, 8), (4, 16)]
    assert all(point["step"] > 0 and point["tokens"] >= 8 for point in found)


@pytest.mark.normal
def test_drawing(tmp_path: Path) -> None:
    found = result_of("drawing", tmp_path)
    assert [point["vocabulary"] for point in found] == [512] * 5
    assert all(point["ratio"] == pytest.approx(point["transformers"] / point["ours"]) for point in found)


@pytest.mark.normal
def test_packed_rows(tmp_path: Path) -> None:
    """That both attentions have one loss is asserted inside."""
    found = result_of("packed_rows", tmp_path)
    assert [point["rows"] for point in found] == ["32", "1,024 and 32"]
    for low, middle, high in (point[name] for point in found for name in ("masked", "ours", "ratio")):
        assert 0 < low <= middle <= high


@pytest.mark.normal
def test_packed_attention(tmp_path: Path) -> None:
    found = result_of("packed_attention", tmp_path)
    assert [point["model"] for point in found] == ["v3", "qwen3"]
    for point in found:
        assert point["differences"].keys() == {"by_stretches", "flex"}
        assert max(point["differences"].values()) < 1e-5
        assert point["tokens"] > 3 * 128  # some blocks of the mask are empty, others full or partly so
        for low, middle, high in (point[name] for name in ("by_rows", "by_stretches", "ratio")):
            assert 0 < low <= middle <= high


@pytest.mark.slow  # compiling alone takes most of a minute
def test_compiled_step(tmp_path: Path) -> None:
    """That a compiled step has the plain one's logits is asserted inside."""
    found = result_of("compiled_step", tmp_path)
    assert found.keys() == {"plain", "compiled"}
    assert found["plain"]["ratio"] == [1, 1, 1] and found["compiled"]["made"] > 0
    for low, middle, high in (way[name] for way in found.values() for name in ("ms", "ratio")):
        assert 0 < low <= middle <= high


@pytest.mark.parametrize(("kind", "size"), MILLIONS)
def test_sizes(kind: str, size: str) -> None:
    assert (kind, size) in SIZES
    with torch.device("meta"):
        model = build_model(kind, size, build_tokenizer())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[kind, size], rel=0.05)


def test_forced_lengths() -> None:
    logits = torch.zeros(3, 5)
    force_lengths(logits, torch.tensor([1, 2, 3]), torch.tensor([0, 0, 2]), eos_id=4)
    assert logits.argmax(-1).tolist() == [4, 0, 4]
    assert logits.softmax(-1)[:, 4].tolist() == [1, 0, 1]
