"""Everything on the device that it belongs on, and no waiting for it where the work is done: on a pretended GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from grpo.policy.tiny_dense import save_tiny_dense
from tests.grpo.launching import DEADLINE, ROOT

pytestmark = pytest.mark.normal
CASES = {"v3": ("row_by_row", "adapter"), "dense": ("three_problems",)}


@pytest.fixture(scope="module", params=CASES)
def found(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In a process of its own: torch knows the device until the process ends."""
    folder, model = tmp_path_factory.mktemp("placement"), tiny_model
    if request.param == "dense":
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)  # moved to the pretended device, tied weights come apart
        model = save_tiny_dense(folder / "model", tokenizer=tokenizer, tie_word_embeddings=False)
    command = [sys.executable, "-m", "tests.grpo.pretended_gpu", model, folder, *CASES[request.param]]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert process.returncode == 0, process.stderr
    return json.loads((folder / "found.json").read_text())


def test_training_gives_what_it_gives_on_a_cpu(found: dict[str, Any]) -> None:
    """Gradients of each update, weights after the last (measured: at most 1e-6), and what was sampled on the way."""
    assert found["errors"] and all(error < 1e-5 for error in found["errors"].values())
    ours, theirs = map(unrounded, found["facts"])
    assert ours == theirs


def unrounded(facts: dict[str, Any]) -> dict[str, Any]:
    """Of each update what is exact, and everything of the evaluations."""
    exact = ("rewards", "fates", "tokens")
    return {
        name: [{key: update[key] for key in exact} for update in found] if isinstance(found, list) else found
        for name, found in facts.items()
    }


@pytest.mark.parametrize("name", ["step", "__call__", "token_logprobs", "micro_loss", "backward"])
def test_what_is_done_again_and_again_does_not_wait_for_the_device(found: dict[str, Any], name: str) -> None:
    """A decode step, a draw, a forward and its backward."""
    assert found["counts"][f"calls of {name}"] >= 4
    assert found["counts"][f"waits of {name}"] == 0


def test_waits_are_found(found: dict[str, Any]) -> None:
    """For tokens that have been drawn, and for what an update measured."""
    assert {line.split(":")[0] for line in found["waits"]} >= {"sampling/fast.py", "stats.py"}


def test_the_rules_of_sampling_give_what_they_give_on_a_cpu(found: dict[str, Any]) -> None:
    ours, theirs = found["sampled"]
    assert len(theirs) == 12
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("sampler_logprobs") == pytest.approx(other.pop("sampler_logprobs"), abs=1e-5)
        assert one == other
