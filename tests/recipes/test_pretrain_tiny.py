"""How the tiny base is trained, and the shipped base itself: small, and able to reason but mostly not doing so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grpo.config import AdapterConfig, ModelConfig
from grpo.config.parse import parse_flat
from grpo.policy.load import load_policy
from recipes import pretrain_tiny
from recipes.pretrain_tiny import IGNORED, PretrainConfig, TinyBaseConfig, held_out_figures, learning_rate

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "recipes" / "configs" / "tiny_v3" / "pretrain.yaml"
SMALL = [
    "--dataset_kwargs", "{size: 300, min_terms: 3, max_terms: 5, min_digits: 1, max_digits: 1}", "--rows_per_step", "8",
    "--steps", "3", "--eval_problems", "4", "--eval_samples", "2",
]  # fmt: skip
MEGABYTE = 2**20


def make(folder: Path, *flags: str) -> dict[str, torch.Tensor]:
    assert pretrain_tiny.main(["--config", str(CONFIG), "--output_dir", str(folder), *SMALL, *flags]) == 0
    return load_file(folder / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


@pytest.mark.normal
def test_the_recipe_writes_a_loadable_folder_and_the_seed_decides_the_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    once, again = make(tmp_path / "once"), make(tmp_path / "again")
    other = make(tmp_path / "other", "--seed", "1")
    assert same(once, again) and not same(once, other)

    record = json.loads((tmp_path / "once" / "pretraining.json").read_text())
    assert record["config"]["train"]["steps"] == 3 and record["held_out"]["problems"] == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "once")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "once")
    assert model.config.vocab_size == len(tokenizer)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    cfg = PretrainConfig(output_dir="x", steps=1000, peak_learning_rate=2e-3, final_share=0.1, warmup=10)
    rates = [learning_rate(step, cfg) for step in range(cfg.steps)]
    assert rates[0] == pytest.approx(2e-4) and rates[4] == pytest.approx(1e-3, rel=1e-3)
    assert rates[500] == pytest.approx(2e-3 * 0.55)  # half way: the mean of the two ends
    assert rates[-1] == pytest.approx(2e-4, rel=1e-3)
    assert rates.index(max(rates)) == 9 and rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(learning_rate(0, replace(cfg, warmup=1)), 2e-3)


def test_only_completions_are_learned() -> None:
    rows = [([5, 6, 7], [8, 2]), ([5], [9, 8, 7, 2])]
    input_ids_BL, labels_BL = pretrain_tiny._pad(rows, pad_id=0)
    assert input_ids_BL.tolist() == [[5, 6, 7, 8, 2], [5, 9, 8, 7, 2]]
    assert labels_BL.tolist() == [[IGNORED] * 3 + [8, 2], [IGNORED, 9, 8, 7, 2]]


@pytest.mark.normal
def test_the_shipped_base_is_small_and_can_reason_but_mostly_does_not(tiny_base: Path) -> None:
    assert sum(path.stat().st_size for path in tiny_base.iterdir()) <= 2 * MEGABYTE
    cfg = parse_flat(["--config", str(CONFIG), "--eval_problems", "128", "--eval_samples", "8"], TinyBaseConfig)
    policy = load_policy(ModelConfig(model_name_or_path=str(tiny_base)), AdapterConfig(), device=torch.device("cpu"))
    figures = held_out_figures(policy, cfg)
    assert 0.05 <= figures["pass@1"] <= 0.35
    assert figures["pass@8"] > 0.7
    assert figures["format_rate"] > 0.5

    record = json.loads((tiny_base / "pretraining.json").read_text())
    shipped = parse_flat(["--config", str(CONFIG)], TinyBaseConfig)
    trained = {**record["config"]["train"], "output_dir": shipped.train.output_dir}
    assert PretrainConfig(**trained) == shipped.train  # the recipe beside it is the one that made it
    assert record["held_out"]["pass@1"] == pytest.approx(figures["pass@1"], abs=0.06)
