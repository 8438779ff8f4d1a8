"""Which rows supervised fine-tuning reads: one set, known as it always was, or several in `dataset_mixture`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from grpo.config import ModelConfig
from grpo.distributed import Dist
from grpo.errors import ConfigError
from recipes import cold_start_sft
from recipes.cold_start_sft import parse
from recipes.lineage import fingerprint_of
from recipes.tuning.sft_rows import IGNORED, token_key
from recipes.tuning.token_file import ConversationsConfig, TokenFile, token_files

REQUIRED = ["--model_name_or_path", "model", "--output_dir", "run"]


def write(path: Path, rows: dict[str, str]) -> str:
    lines = (json.dumps({"prompt": prompt, "completion": said}) + "\n" for prompt, said in rows.items())
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def first(tmp_path: Path) -> str:
    return write(tmp_path / "first.jsonl", {"1 + 1": "2", "1 + 2": "3", "1 + 3": "4"})


@pytest.fixture
def second(tmp_path: Path) -> str:
    return write(tmp_path / "second_train.jsonl", {"5 - 1": "4", "5 - 2": "3", "5 - 3": "2"})


def tokens_of(model: Path, folder: Path, **data: Any) -> TokenFile:
    where = ModelConfig(model_name_or_path=str(model))
    rows, _ = token_files(where, ConversationsConfig(max_length=64, **data), folder)
    return rows


def texts(rows: TokenFile, model: Path) -> list[str]:
    """What each row shows and says, behind `|` what it says."""
    rows.made(Dist(device=torch.device("cpu")))
    decode = AutoTokenizer.from_pretrained(model).decode
    starts = [(row["input_ids"], row["labels"].count(IGNORED)) for row in rows.dataset()]
    return [f"{decode(ids[:start])}|{decode(ids[start:])}".removesuffix("<eos>") for ids, start in starts]


def test_the_sets_of_a_mixture_follow_one_another(tiny_base: Path, first: str, second: str, tmp_path: Path) -> None:
    mixture = [{"dataset_name": second.replace("train", "{split}"), "keep": 0.5}, {"dataset_name": first}]
    rows = tokens_of(tiny_base, tmp_path, dataset_mixture=mixture)
    assert texts(rows, tiny_base) == ["5 - 1|4", "5 - 2|3", "1 + 1|2", "1 + 2|3", "1 + 3|4"]  # half of three is two
    assert rows.made(Dist(device=torch.device("cpu")))["rows kept"] == 5


def test_one_set_is_known_by_what_it_was_known_by_before_there_were_mixtures(
    tiny_base: Path, first: str, second: str, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    what = {"data": fingerprint_of(first), "split": "train", "max_length": 64, "long_rows": "drop"}
    name = f"{token_key(tokenizer, what | {'ends': [tokenizer.eos_token_id]})}.arrow"
    assert tokens_of(tiny_base, tmp_path, dataset_name=first).path.name == name
    alone = tokens_of(tiny_base, tmp_path, dataset_mixture=[{"dataset_name": first}])
    assert alone.path.name == name  # the same rows
    two = [{"dataset_name": first}, {"dataset_name": second}]
    other = [two[::-1], [two[0], {**two[1], "keep": 0.5}], [{**two[0], "keep": 0.5}], two]
    names = {tokens_of(tiny_base, tmp_path, dataset_mixture=mixture).path.name for mixture in other}
    assert len(names | {name}) == 5
    by_split = second.replace("train", "{split}")
    was = tokens_of(tiny_base, tmp_path, dataset_name=by_split).path.name
    write(Path(second), {"5 - 4": "1"})
    assert tokens_of(tiny_base, tmp_path, dataset_mixture=two).path.name not in names
    assert tokens_of(tiny_base, tmp_path, dataset_name=by_split).path.name != was


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "dataset_name is required"),
        ({"dataset_name": "a", "dataset_mixture": [{"dataset_name": "b"}]}, "keep one of the two"),
        ({"dataset_mixture": [{"keep": 0.5}]}, "entry 1: dataset_name is required"),
        ({"dataset_mixture": [{"dataset_name": "a"}, {"dataset_name": "b", "keep": 2}]}, "entry 2: keep: got 2.0"),
        ({"dataset_mixture": [{"dataset_name": "a", "weight": 2}]}, "entry 1: unknown key 'weight'"),
    ],
)
def test_what_is_no_mixture_is_told_at_once(data: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ConversationsConfig(**data)


def test_open_r1s_mixture_is_understood(tmp_path: Path) -> None:
    """As its recipes write it; its weight is the share of a set that is used."""
    (tmp_path / "recipe.yaml").write_text(
        "dataset_mixture:\n  datasets:\n"
        "    - {id: open-r1/A, config: all, split: train, columns: [messages], weight: 0.5}\n"
        "    - {id: open-r1/B, config: null, split: test, columns: [messages], weight: null}\n  seed: 0\n"
    )
    run = parse([*REQUIRED, "--config", str(tmp_path / "recipe.yaml")])
    found = [(s.dataset_name, s.dataset_config, s.dataset_train_split, s.keep) for s in run.config.data.sources()]
    assert found == [("open-r1/A", "all", "train", 0.5), ("open-r1/B", None, "test", 1.0)]
    assert any("translated dataset_mixture" in note and "its seed decides nothing here" in note for note in run.notes)


def test_a_mixture_trains_and_its_sets_are_in_the_lineage(
    tiny_base: Path, first: str, second: str, tmp_path: Path
) -> None:
    mixture = f"[{{dataset_name: {first}}}, {{dataset_name: {second}}}]"
    given = f"--model_name_or_path {tiny_base} --output_dir {tmp_path / 'run'} --max_length 64 --max_steps 1"
    assert cold_start_sft.main([*given.split(), "--dataset_mixture", mixture]) == 0
    made = json.loads((tmp_path / "run" / "final" / "lineage.json").read_text())
    assert made["counts"]["rows kept"] == 6
    assert [made["inputs"][f"data {number}"]["name"] for number in (1, 2)] == [first, second]
    again = cold_start_sft.main(["--config", str(tmp_path / "run" / "config.yaml"), "--resume", "must"])
    assert again == 0
