"""FSDP2 on two real ranks: parameters are shards, checkpoints are whole, and what cannot work is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.config import RunConfig
from grpo.config.parse import build
from grpo.distributed import Dist
from grpo.errors import ConfigError
from grpo.setup import build_policy
from grpo.sharding import decoder_layers, shard_like, whole, whole_like
from tests.grpo.launching import Outcome, outcome_of

IDS = torch.tensor([[5, 17, 300, 42, 9, 77, 101]])


@pytest.fixture(scope="session")
def sharded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of("fsdp2", tiny_model, tmp_path_factory.getbasetemp() / "two_fsdp2")


@pytest.fixture(scope="session")
def replicated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return outcome_of("ddp", tiny_model, tmp_path_factory.getbasetemp() / "two_ddp")


@pytest.mark.normal
def test_every_parameter_and_both_moments_are_shards(sharded: Outcome, replicated: Outcome) -> None:
    for facts in sharded.facts:
        place = facts["place"]
        assert (place["world"], place["sharded"]) == (2, place["parameters"])
        assert place["parameters"] > 0
        assert place["sharded_moments"] and all(place["sharded_moments"])
        assert place["local_share"] == pytest.approx(0.5, abs=0.02)  # a shard of an odd length is padded
    for facts in replicated.facts:
        assert (facts["place"]["sharded"], facts["place"]["local_share"]) == (0, 1)


@pytest.mark.normal
def test_the_exported_folder_is_a_plain_model(sharded: Outcome, replicated: Outcome) -> None:
    """Both launches trained alike, so what transformers loads from the sharded one is the replicated one's model."""
    config = json.loads((sharded.folder / "exported" / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(sharded.folder / "exported", dtype=torch.float32).eval()
    twin = AutoModelForCausalLM.from_pretrained(replicated.folder / "exported", dtype=torch.float32).eval()
    assert type(model).__name__ == "DeepseekV3ForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, twin(IDS).logits, rtol=0, atol=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, sharded.tensors[f"one_problem/after/{name}"]), name
    assert load_file(sharded.folder / "exported" / "model.safetensors").keys() == (
        load_file(replicated.folder / "exported" / "model.safetensors").keys()
    )
    AutoTokenizer.from_pretrained(sharded.folder / "exported")


def test_lora_under_fsdp2_is_refused_with_a_way_out(tiny_model: Path) -> None:
    values = {"model_name_or_path": str(tiny_model), "dataset_name": "none", "reward_funcs": ["format"]}
    cfg = build(RunConfig, {**values, "output_dir": "none", "use_peft": True})
    with pytest.raises(ConfigError, match=r"use_peft.*ddp\.yaml"):
        build_policy(cfg, Dist(world=2, sharded=True), None)


def test_one_unit_per_decoder_layer(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert decoder_layers(model) == list(model.model.layers)


def test_plain_tensors_pass_through_unchanged() -> None:
    value, parameter = torch.arange(6.0), nn.Parameter(torch.zeros(6))
    assert torch.equal(shard_like(value, parameter), value)
    assert torch.equal(whole(value), value)
    assert torch.equal(whole_like(value, parameter), value)
