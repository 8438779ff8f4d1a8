"""A preference model learns from pairs alone, is what the reward loads, resumes, and refuses early."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config, Qwen2Model

from grpo.monitor.metrics import read_metrics
from recipes import train_preference_model as stage
from rewards import Rubric

FLAGS = "--per_device_train_batch_size 16 --num_train_epochs 3 --learning_rate 3e-3 --max_length 96 --seed 1"


def pair(rng: random.Random) -> dict[str, str]:
    """Who says "then" is preferred, wherever in the answer it stands; length and numbers say nothing."""

    def said(words: list[str]) -> str:
        rng.shuffle(words)
        return " ".join(f"{word} {rng.randrange(3, 30)}" for word in words[: rng.choice((2, 3))])

    good, bad = said(["then", "then", "so"]), said(["so", "so", "first"])
    return {"prompt": f"{rng.randrange(30)} + {rng.randrange(30)} =", "chosen": good, "rejected": bad}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, rng = tmp_path_factory.mktemp("pairs"), random.Random(0)
    for split, count in (("train", 240), ("test", 60)):
        rows = [pair(rng) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{folder}/{{split}}.jsonl"


@pytest.fixture(scope="module")
def dense(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body of another architecture without a head of any kind."""
    folder, tokenizer = tmp_path_factory.mktemp("dense"), AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=128, **sizes)
    Qwen2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(model: Path, pairs: str, run_dir: Path, more: str = "") -> int:
    given = f"--model_name_or_path {model} --dataset_name {pairs} --output_dir {run_dir} {FLAGS} {more}"
    return stage.main(given.split())


@pytest.fixture(scope="module")
def trained(tiny_base: Path, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "v3"
    assert run(tiny_base, pairs, run_dir, "--save_steps 15") == 0
    return run_dir


def held_out(pairs: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(pairs.replace("{split}", "test")).read_text().splitlines()]


def test_it_ranks_held_out_pairs_and_the_reward_ranks_them_the_same(trained: Path, pairs: str) -> None:
    figures = json.loads((trained / "figures.json").read_text())
    assert figures["accuracy"]["mean"] >= 0.95 and figures["accuracy"]["low"] > 0.85  # chance: 0.5
    assert abs(figures["length_correlation"]) < 0.5 and figures["pairs"] == 60

    rows = held_out(pairs)
    rubric = Rubric.from_config([{"name": "preference_model", "model_name_or_path": str(trained / "final")}])
    columns: dict[str, list[Any]] = {}
    for side in ("chosen", "rejected"):
        scored = rubric.score(
            prompts=[row["prompt"] for row in rows],
            completions=[f"<think>so so</think> {row[side]}" for row in rows],
            completion_ids=[[1]] * len(rows),
            columns={},
            trainer_state=None,
            step=0,
        )
        columns[side] = scored.rewards
    right = [good > bad for good, bad in zip(columns["chosen"], columns["rejected"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(figures["accuracy"]["mean"], abs=1e-9)


def test_its_score_is_the_head_on_the_last_token_of_the_conversation(trained: Path, pairs: str) -> None:
    """By hand: body, then the head's row, at the last position of an unpadded row."""
    from grpo.policy.preference import PreferenceModel

    row = held_out(pairs)[0]
    tokenizer = AutoTokenizer.from_pretrained(trained / "final")
    model = AutoModelForSequenceClassification.from_pretrained(trained / "final").eval()
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]
    ids = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model.score.weight[0] @ model.model(ids).last_hidden_state[0, -1]
    judge = PreferenceModel(model_name_or_path=str(trained / "final"))
    (reward,) = judge(prompts=[row["prompt"]], completions=[row["chosen"]])
    assert reward.score == pytest.approx(expected.item(), abs=1e-4)


def test_the_run_folder_holds_curves_and_lineage(trained: Path, tiny_base: Path) -> None:
    metrics = read_metrics(trained)
    assert metrics[-1]["pair_accuracy"] > 0.9 > metrics[0]["pair_accuracy"]
    lineage = json.loads((trained / "lineage.json").read_text())
    assert lineage["stage"] == "train_preference_model" and lineage["counts"]["pairs"] == 240
    assert lineage["inputs"]["model"]["name"] == str(tiny_base) and len(lineage["inputs"]["pairs"]["sha256"]) == 64
    assert lineage["inputs"]["held_out"]["sha256"] not in (None, lineage["inputs"]["pairs"]["sha256"])


@pytest.mark.normal
def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(
    trained: Path, tiny_base: Path, pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(RuntimeError):
        pass

    step = stage.trl().RewardTrainer.training_step
    steps = iter(range(20))

    def training_step(*args: Any, **keys: Any) -> Any:
        if next(steps, None) is None:
            raise Cut
        return step(*args, **keys)

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(stage.trl().RewardTrainer, "training_step", training_step)
        run(tiny_base, pairs, tmp_path / "run", "--save_steps 15")
    assert (tmp_path / "run" / "checkpoint-15").is_dir() and not (tmp_path / "run" / "final").exists()
    assert run(tiny_base, pairs, tmp_path / "run", "--save_steps 15 --resume auto") == 0
    once, twice = (
        AutoModelForSequenceClassification.from_pretrained(folder / "final").state_dict()
        for folder in (trained, tmp_path / "run")
    )
    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)
    assert run(tiny_base, pairs, tmp_path / "run", "--learning_rate 1e-4 --resume auto") == 2
    assert run(tiny_base, pairs, tmp_path / "run", "--save_steps 15 --dataset_test_split null --resume auto") == 0


@pytest.mark.slow
def test_a_dense_body_learns_too(dense: Path, pairs: str, tmp_path: Path) -> None:
    assert run(dense, pairs, tmp_path / "run", "--num_train_epochs 6") == 0
    assert json.loads((tmp_path / "run" / "figures.json").read_text())["accuracy"]["mean"] >= 0.9


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--dataset_name {folder}/none.jsonl", "no file"),
        ("--dataset_name {folder}/bad.jsonl --dataset_test_split null", "no value in column chosen"),
        ("--max_length 3", "every pair of train has a conversation over max_length=3 tokens"),
        ("--learning_rte 1", "unknown key 'learning_rte'"),
        ("--eval_strategy steps", "eval_strategy"),
        ("--lr_scheduler_type cosin", "cosin is not a valid SchedulerType"),
        ("--part some", "answer | all"),
        ("--model_name_or_path {folder}/no-model", "no-model"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_a_weight_is_loaded(
    flags: str, told: str, tiny_base: Path, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    assert run(tiny_base, pairs, tmp_path / "run", flags.format(folder=tmp_path)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()
