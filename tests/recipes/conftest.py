"""Shared by the recipes' tests: the shipped base, and the settings that make a run take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "recipes" / "configs" / "tiny_v3" / "base"


@pytest.fixture(scope="session")
def tiny_base() -> Path:
    """The trained tiny base that the recipes start from; it is part of the project."""
    assert (BASE / "model.safetensors").is_file(), f"{BASE} is absent: make it with recipes.pretrain_tiny"
    return BASE
