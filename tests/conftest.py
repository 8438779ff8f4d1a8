"""Shared by all tests: no network, one thread, and a tiny V3-style model on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # how busy the machine is, is no property of the code
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def own_accelerator_state() -> Iterator[None]:
    """The precision that one module's trainer chose is not forced on the next module's."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data files beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("R1_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny DeepseekV3ForCausalLM with its tokenizer, as a Hugging Face folder."""
    import torch

    from grpo.policy.tiny_v3 import save_tiny_v3
    from recipes.tiny_corpus import PHRASES

    torch.set_num_threads(1)
    return save_tiny_v3(tmp_path_factory.mktemp("models") / "tiny_v3", phrases=PHRASES)
