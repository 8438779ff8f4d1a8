"""Supervised rows: a prompt and all that the assistant said, read from what people have and written as Parquet shards.

On disk a row is `id, prompt, completion, task, source, lineage` (JSON text) and further columns; prompt and completion
are both text or both lists of {role, content}, which TRL's SFTTrainer reads as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.files import replacing
from data.problem import DataError, Message
from data.readers import Row, read_rows
from data.report import BadRow

STATE = b"state"  # where a shard's Parquet metadata keeps what its writer knew after it
CORE = ("id", "prompt", "completion", "task", "source", "lineage")
SHAREGPT = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
# How open-r1's data says which of its generations are right: by rule, or where no rule could tell by a judge.
CORRECTNESS = ("correctness_math_verify", "correctness_llama")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One supervised row. `completion`: all that the assistant said, `<think>` included, without an end token; where
    the prompt itself ends with `<think>`, what follows it. `lineage`: which checkpoint, data and settings it came from.
    """

    id: str
    prompt: str | list[Message]
    completion: str
    task: str = "default"
    source: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_conversations(name: str, *, split: str = "train", config: str | None = None) -> Iterator[Conversation]:
    """The rows of a file, a folder or a Hub id, as they come, in order.

    Known are our own rows, `prompt` with `completion` (text or messages), `messages` (the last turn is the completion),
    ShareGPT's `conversations` of `from` and `value`, and open-r1's `problem` with `generations`: one row for each that
    is complete and that the data calls correct.
    Raises DataError for a row that is none of these, naming it.
    """
    for file in _shards(Path(name), split) or [name]:
        for row in read_rows(str(file), config=config, split="train" if isinstance(file, Path) else split):
            if isinstance(row, BadRow):
                raise DataError(f"{file}, {row.place}: {row.reason}")
            try:
                yield from _conversations(row, id=f"{Path(file).name}:{row.place.split()[1]}", source=name)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{file}, {row.place}: no conversation ({error}). Its columns are {', '.join(row.columns)}; needed "
                    "are `prompt` and `completion` (both text or both messages), `messages` that end with the "
                    "assistant's, ShareGPT's `conversations` of `from` and `value`, or open-r1's `problem` and "
                    "`generations`"
                ) from error


class ShardWriter:
    """Rows to `<folder>/train-00000.parquet` and on, one shard a call, each there whole or not at all.

    With every shard goes a `state` (JSON) of the caller's, so that rows and the place to go on from cannot differ: a
    new writer on the same folder finds the newest in `state` (None: an empty folder) and goes on behind it.
    `conversational`: prompts are messages. `columns`: further columns and their Python types (str, int, float, bool).
    """

    def __init__(self, folder: Path | str, *, conversational: bool, columns: Mapping[str, type] | None = None) -> None:
        self.folder, self.conversational, self.columns = Path(folder), conversational, dict(columns or {})
        shards = _shards(self.folder, "train")
        self.next = len(shards)
        self.state: Any = _state_of(shards[-1]) if shards else None

    def write(self, rows: Iterable[Conversation], *, state: Any) -> Path:
        """One shard. Raises DataError for a row of the other kind of prompt, TypeError for one of another type."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self._schema().with_metadata({STATE: json.dumps(state)})
        table = pa.Table.from_pylist([self._on_disk(row) for row in rows], schema=schema)
        path = self.folder / f"train-{self.next:05d}.parquet"
        with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
            if table.num_rows:  # `datasets` cannot read an empty row group
                file.write_table(table)
        self.next, self.state = self.next + 1, state
        return path

    def _on_disk(self, row: Conversation) -> dict[str, Any]:
        if isinstance(row.prompt, str) == self.conversational:
            raise DataError(
                f"row {row.id!r} has a prompt of {'text' if self.conversational else 'messages'}, the others of "
                f"{'messages' if self.conversational else 'text'}: give all one prompt_template"
            )
        said = _storable(row.completion)
        core = {
            "id": row.id,
            "prompt": row.prompt,
            "completion": [{"role": "assistant", "content": said}] if self.conversational else said,
            "task": row.task,
            "source": row.source,
            "lineage": json.dumps(row.lineage),
        }
        return core | {name: row.columns.get(name) for name in self.columns}

    def _schema(self) -> Any:
        import pyarrow as pa

        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        said = pa.list_(message) if self.conversational else pa.string()
        core = {name: said if name in ("prompt", "completion") else pa.string() for name in CORE}
        return pa.schema([*core.items(), *((name, kinds[kind]) for name, kind in self.columns.items())])


def _shards(folder: Path, split: str) -> list[Path]:
    found = [path for path in folder.glob(f"{split}-*.parquet") if re.fullmatch(rf"{split}-\d{{5,}}", path.stem)]
    return sorted(found, key=lambda path: int(path.stem.rpartition("-")[2]))


def _state_of(shard: Path) -> Any:
    import pyarrow.parquet as pq

    metadata = pq.read_schema(shard).metadata or {}
    if STATE not in metadata:
        raise DataError(f"{shard} was not written by this project: name another folder")
    return json.loads(metadata[STATE])


def _conversations(row: Row, *, id: str, source: str) -> Iterator[Conversation]:
    columns = row.columns
    if columns.get("generations") is not None:
        yield from _open_r1(columns, id=str(columns.get("uuid") or id), source=source)
        return
    used = {*CORE, "messages", "conversations"}
    if columns.get("completion") is not None:
        prompt, completion = columns["prompt"], _said(columns["completion"])
    else:
        shared = columns.get("conversations") if columns.get("messages") is None else None
        *prompt, last = _messages(columns["messages"]) if shared is None else _sharegpt(shared)
        completion = _said([last])
    yield Conversation(
        id=str(columns.get("id") or id),
        prompt=prompt if isinstance(prompt, str) else _messages(prompt),
        completion=completion,
        task=columns.get("task") or "default",
        source=columns.get("source") or source,
        lineage=json.loads(columns.get("lineage") or "{}"),
        columns={name: value for name, value in columns.items() if name not in used},
    )


def _open_r1(columns: Mapping[str, Any], *, id: str, source: str) -> list[Conversation]:
    generations = columns["generations"]
    right = next((columns[name] for name in CORRECTNESS if any(columns.get(name) or [])), None)
    judged = any(columns.get(name) is not None for name in CORRECTNESS)
    whole = columns.get("is_reasoning_complete") or [True] * len(generations)
    rows = zip(generations, right or [not judged] * len(generations), whole, strict=True)
    return [
        Conversation(
            id=f"{id}#{number}",
            prompt=[{"role": "user", "content": columns["problem"]}],
            completion=text,
            task=columns.get("problem_type") or "default",
            source=columns.get("source") or source,
            columns={"answer": columns.get("answer")},
        )
        for number, (text, good, complete) in enumerate(rows)
        if good and complete
    ]


def _messages(value: Sequence[Mapping[str, Any]]) -> list[Message]:
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in value]
    if not messages or not all(isinstance(turn["content"], str) for turn in messages):
        raise TypeError("messages without text")
    return messages


def _sharegpt(turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    if strangers := {turn["from"] for turn in turns} - SHAREGPT.keys():
        raise ValueError(f"turns from {', '.join(sorted(strangers))}; allowed: {', '.join(SHAREGPT)}")
    return _messages([{"role": SHAREGPT[turn["from"]], "content": turn["value"]} for turn in turns])


def _said(completion: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(completion, str):
        return completion
    (message,) = _messages(completion)
    if message["role"] != "assistant":
        raise TypeError(f"the last message is the {message['role']}'s")
    return message["content"]


def _storable(text: str) -> str:
    """With what readers refuse (NUL, and lone surrogates, which UTF-8 cannot hold) spelled out."""
    return text.replace("\0", r"\x00").encode(errors="backslashreplace").decode()
