"""Everything on the device that it belongs on, and no waiting for it where tokens are made: on a pretended GPU."""

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
    assert found["errors"] and max(found["errors"].values()) < 1e-5
    for ours, theirs in zip(*(facts.values() for facts in found["facts"]), strict=True):
        if isinstance(theirs, list):
            ours, theirs = (
                [(one["rewards"], one["fates"], one["tokens"]) for one in facts] for facts in (ours, theirs)
            )
        assert ours == theirs


def test_tokens_are_made_without_waiting_for_the_device(found: dict[str, Any]) -> None:
    counts = found["counts"]
    assert counts["steps"] > 10 and counts["draws"] > 10
    assert counts["waits of a step"] == counts["waits of a draw"] == 0
    assert any("fast.py" in line for line in found["waits"])  # it waits between them, to look at the tokens


def test_the_rules_of_sampling_give_what_they_give_on_a_cpu(found: dict[str, Any]) -> None:
    ours, theirs = found["sampled"]
    assert len(theirs) == 12
    for one, other in zip(ours, theirs, strict=True):
        assert one.pop("sampler_logprobs") == pytest.approx(other.pop("sampler_logprobs"), abs=1e-5)
        assert one == other
