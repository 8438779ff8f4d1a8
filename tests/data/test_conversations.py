"""Supervised rows: every form people have them in, shards that survive a kill, and TRL's and datasets' own reading."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.conversations import Conversation, ShardWriter, read_conversations
from data.problem import DataError

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
SAID = [{"role": "assistant", "content": "<think>one more</think> 2"}]


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count: int, *, conversational: bool = False, start: int = 0) -> list[Conversation]:
    return [
        Conversation(
            id=f"p{number}",
            prompt=ASKED if conversational else f"what is {number}?",
            completion=f"<think>hm</think> {number}",
            task="sums",
            source="here",
            lineage={"checkpoint": "zero", "seed": number},
            columns={"tokens": number, "answer": None},
        )
        for number in range(start, start + count)
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*ASKED, *SAID]},
        {"prompt": ASKED, "completion": SAID},
        {"prompt": ASKED, "completion": SAID[0]["content"]},
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "1 + 1?"},
                {"from": "gpt", "value": "<think>one more</think> 2"},
            ]
        },
    ],
)
def test_the_ways_to_write_one_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    (read,) = read_conversations(jsonl(tmp_path / "rows.jsonl", {**row, "level": 3}))
    assert (read.id, read.prompt, read.completion) == ("rows.jsonl:1", ASKED, "<think>one more</think> 2")
    assert read.columns == {"level": 3} and read.task == "default"


def test_every_turn_of_sharegpt_has_its_role(tmp_path: Path) -> None:
    said = [("system", "be brief"), ("human", "1 + 1?"), ("gpt", "2"), ("human", "2 + 2?"), ("gpt", "4")]
    turns = [{"from": who, "value": text} for who, text in said]
    (read,) = read_conversations(jsonl(tmp_path / "rows.jsonl", {"conversations": turns}))
    roles = ("system", "user", "assistant", "user")
    assert read.prompt == [{"role": role, "content": text} for role, (_, text) in zip(roles, said[:-1], strict=True)]
    assert read.completion == "4"


def test_text_rows_stay_text(tmp_path: Path) -> None:
    row = {"prompt": "1 + 1 =", "completion": " 2", "id": "a", "task": "sums", "source": "book"}
    (read,) = read_conversations(jsonl(tmp_path / "rows.jsonl", row))
    assert read == Conversation(id="a", prompt="1 + 1 =", completion=" 2", task="sums", source="book")


def open_r1(**changes: Any) -> dict[str, Any]:
    return {
        "problem": "1 + 1?",
        "answer": "2",
        "problem_type": "Algebra",
        "source": "olympiads",
        "uuid": "u-1",
        "generations": ["right", "wrong", "right but cut"],
        "correctness_math_verify": [True, False, True],
        "correctness_llama": None,
        "is_reasoning_complete": [True, True, False],
        "messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "right"}],
    } | changes


def test_open_r1_rows_give_what_the_data_calls_right(tmp_path: Path) -> None:
    (read,) = read_conversations(jsonl(tmp_path / "rows.jsonl", open_r1()))
    assert read == Conversation(
        id="u-1#0",
        prompt=[{"role": "user", "content": "1 + 1?"}],
        completion="right",
        task="Algebra",
        source="olympiads",
        columns={"answer": "2"},
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"correctness_math_verify": [False] * 3, "correctness_llama": [False, True, False]}, ["wrong"]),
        ({"correctness_math_verify": [False] * 3}, []),
        ({"correctness_math_verify": None}, ["right", "wrong"]),
        ({"correctness_math_verify": None, "is_reasoning_complete": None}, ["right", "wrong", "right but cut"]),
    ],
)
def test_which_generations_of_open_r1_count(tmp_path: Path, changes: dict[str, Any], wanted: list[str]) -> None:
    read = read_conversations(jsonl(tmp_path / "rows.jsonl", open_r1(**changes)))
    assert [row.completion for row in read] == wanted


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "1 + 1?", "answer": "2"}, "columns are question, answer"),
        ({"completion": "2"}, "'prompt'"),
        ({"messages": [{"role": "user", "content": "1 + 1?"}]}, "last message is the user's"),
        ({"messages": SAID}, "messages without text"),
        ({"conversations": [{"from": "human", "value": "1 + 1?"}]}, "last message is the user's"),
        ({"conversations": [{"from": "tool", "value": "2"}]}, "turns from tool; allowed: system, human"),
        ({"conversations": [{"role": "user", "content": "2"}]}, "'from'"),
        ({"messages": []}, "needed are"),
        ({"prompt": ASKED, "completion": [*SAID, *SAID]}, "needed are"),
        (open_r1(correctness_math_verify=[True]), "needed are"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    good = {"prompt": "1 + 1 =", "completion": " 2"}
    reading = read_conversations(jsonl(tmp_path / "rows.jsonl", good, row))
    next(reading)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*" + says):
        next(reading)


@pytest.mark.parametrize("conversational", [False, True])
def test_what_is_written_is_what_is_read(tmp_path: Path, conversational: bool) -> None:
    writer = ShardWriter(tmp_path / "set", conversational=conversational, columns={"tokens": int, "answer": str})
    assert writer.state is None
    written = rows(5, conversational=conversational)
    for part, state in ((written[:3], {"done": 3}), ([], {"done": 4}), (written[3:], {"done": 5})):
        writer.write(part, state=state)
    assert list(read_conversations(str(tmp_path / "set"))) == written
    assert ShardWriter(tmp_path / "set", conversational=conversational).state == {"done": 5}


@given(texts=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8), max_size=5))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    written = [Conversation(id=str(i), prompt="q", completion=text) for i, text in enumerate(texts)]
    ShardWriter(folder, conversational=False).write(written, state=None)
    assert list(read_conversations(str(folder))) == [
        Conversation(id=row.id, prompt="q", completion=row.completion, source=str(folder)) for row in written
    ]


def test_what_a_reader_would_refuse_is_spelled_out(tmp_path: Path) -> None:
    ShardWriter(tmp_path, conversational=False).write(
        [Conversation(id="0", prompt="q", completion="\0a\ud800")], state=None
    )
    (read,) = read_conversations(str(tmp_path))
    assert read.completion == r"\x00a\ud800"


def test_two_kinds_of_prompt_do_not_mix(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, conversational=True)
    with pytest.raises(DataError, match="'p0' has a prompt of text, the others of messages"):
        writer.write(rows(1), state=None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "train-00000.parquet")
    with pytest.raises(DataError, match="not written by this project"):
        ShardWriter(tmp_path, conversational=False)


def test_datasets_reads_the_folder_with_a_lineage_beside_it(tmp_path: Path) -> None:
    import datasets

    writer = ShardWriter(tmp_path / "set", conversational=True, columns={"tokens": int})
    writer.write([], state=0)
    for start in range(0, 24, 2):
        writer.write(rows(2, conversational=True, start=start), state=start)
    (tmp_path / "set" / "lineage.json").write_text("{}")
    read = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["id"] == [f"p{i}" for i in range(24)]
    assert read[3]["completion"] == [{"role": "assistant", "content": "<think>hm</think> 3"}]
    assert read.column_names == ["id", "prompt", "completion", "task", "source", "lineage", "tokens"]


KILLED = """
import os, signal, sys
from data.conversations import ShardWriter
from tests.data.test_conversations import rows
import pyarrow.parquet as pq

writer = ShardWriter(sys.argv[1], conversational=False)
writer.write(rows(2), state=2)
pq.ParquetWriter.close = lambda self: os.kill(os.getpid(), signal.SIGKILL)
writer.write(rows(2, start=2), state=4)
"""


def test_a_kill_while_a_shard_is_written_leaves_the_shards_before_it(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, env={**os.environ})
    assert ended.returncode == -9 and len(list(tmp_path.iterdir())) == 2  # a shard, and half of one
    writer = ShardWriter(tmp_path, conversational=False)
    assert writer.state == 2
    writer.write(rows(2, start=2), state=4)
    assert [row.id for row in read_conversations(str(tmp_path))] == ["p0", "p1", "p2", "p3"]
    assert len(list(tmp_path.iterdir())) == 2
