"""Conversations -> token ids with labels, through the template that reinforcement learning and evaluation use.

A row's ids are those of the prompt as `encode_prompt` gives them, then the completion's, then one end token; labels are
the same without the prompt. So what a model is tuned on is what it will see, whatever a template does to finished turns
(DeepSeek-R1's drops their thinking). Rows go to an Arrow file, never all into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data.conversations import Conversation
from data.files import replacing
from data.problem import DataError, Message
from grpo.errors import ConfigError
from grpo.policy.load import encode_prompt
from grpo.policy.template import END_THINK, THINK, frame_of, opened_by

IGNORED = -100  # a label without loss
BATCH = 256  # rows that are tokenised together


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """`completion_ids` end with the end token, unless the row was cut."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def input_ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * len(self.prompt_ids) + self.completion_ids

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(kw_only=True)
class RowCounts:
    """What became of the rows; `tokens` of those kept, `trained` of them with a loss."""

    fates: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    trained: int = 0
    longest: int = 0

    def add(self, row: EncodedRow, fate: str) -> None:
        self.fates[fate] += 1
        self.tokens += len(row)
        self.trained += len(row.completion_ids)
        self.longest = max(self.longest, len(row))

    @property
    def kept(self) -> int:
        return self.fates["kept"] + self.fates["truncated"]

    def as_dict(self) -> dict[str, int]:
        fates = {f"rows {fate}": count for fate, count in self.fates.items()}
        return {"rows": self.fates.total(), **fates} | {
            "tokens": self.tokens, "trained tokens": self.trained, "longest row": self.longest
        }  # fmt: skip

    def __str__(self) -> str:
        fates = ", ".join(f"{count:,} {fate}" for fate, count in self.fates.most_common())
        sizes = f"{self.tokens:,} tokens, {self.trained:,} of them trained on, longest row {self.longest:,}"
        return f"{self.fates.total():,} rows: {fates or 'none'}; {sizes}"


class RowEncoder:
    """Knows how a tokenizer frames an answer: what its prompts open, and which token ends the assistant's turn.

    Raises ConfigError for a template in which a model could not be tuned and then be used alike: one without a
    generation prompt, one that closes `<think>` in the prompt, one that ends a turn with a token at which generation
    does not stop.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        self.tokenizer, self.stop_ids = tokenizer, frozenset(stop_ids)
        self.text_end = tokenizer.eos_token_id if tokenizer.eos_token_id in self.stop_ids else min(self.stop_ids)
        self._chat: tuple[str, int] | None = None

    def encode(self, rows: Sequence[Conversation]) -> Iterator[EncodedRow | str]:
        """Each row, or the reason why it cannot be trained on. Raises DataError for one without the thinking that its
        prompt opened."""
        frames = [self._frame(row.prompt) for row in rows]
        texts = [said_after(opened, row) for (opened, _), row in zip(frames, rows, strict=True)]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for row, ids, (_, end_id) in zip(rows, encoded, frames, strict=True):
            while ids and ids[-1] in self.stop_ids:
                ids = ids[:-1]
            if not ids:
                yield "empty"
            elif not self.stop_ids.isdisjoint(ids):
                yield "with an end token inside"
            else:
                yield EncodedRow(prompt_ids=encode_prompt(self.tokenizer, row.prompt), completion_ids=[*ids, end_id])

    def _frame(self, prompt: str | list[Message]) -> tuple[str, int]:
        """(`<think>` and what follows it where the prompt ends with that, the id that ends the completion)."""
        if isinstance(prompt, str):
            return opened_by(prompt), self.text_end
        if self._chat is None:
            self._chat = self._look_at_template()
        return self._chat

    def _look_at_template(self) -> tuple[str, int]:
        frame = frame_of(self.tokenizer)
        if frame.prompt.rstrip().endswith(END_THINK):
            raise ConfigError(
                f"the chat template closes the thinking before the answer (prompts end with {frame.prompt[-24:]!r}): "
                "give `chat_template` in its thinking form"
            )
        return opened_by(frame.prompt), self._end_of_turn(frame.after)

    def _end_of_turn(self, after: str) -> int:
        first = next(iter(self.tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]), None)
        if first in self.stop_ids:
            return first
        added = self.tokenizer.added_tokens_decoder.get(first)
        if added is None or not added.special:
            return self.text_end
        end, stops = added.content, self.tokenizer.decode(sorted(self.stop_ids))
        raise ConfigError(
            f"the chat template ends the assistant's turn with {end!r}, but generation stops at {stops!r}: a model "
            f"tuned so would not learn to stop. Set `eos_token: {end!r}`, which is exported with the model"
        )


def said_after(opened: str, row: Conversation) -> str:
    """The completion without what the prompt has opened already."""
    if not opened:
        return row.completion
    text = row.completion.lstrip() if row.completion.lstrip().startswith(THINK) else row.completion
    for start in (opened, THINK):
        if text.startswith(start):
            return text.removeprefix(start)
    if END_THINK in text:
        return text
    raise DataError(
        f"row {row.id!r}: its prompt, through the chat template, ends with {opened!r}, but the completion has no "
        f"thinking: {text[:60]!r}. Leave such rows out, or give a `chat_template` that does not open {THINK}"
    )


def fitted(row: EncodedRow, max_length: int, long_rows: Literal["drop", "truncate"]) -> tuple[EncodedRow | None, str]:
    """The row as it is trained on, None where it is left out, and what that is called."""
    if len(row) <= max_length:
        return row, "kept"
    room = max_length - len(row.prompt_ids)
    if room <= 0:
        return None, "left out: the prompt alone is longer than max_length"
    if long_rows == "drop":
        return None, "left out: longer than max_length"
    return EncodedRow(prompt_ids=row.prompt_ids, completion_ids=row.completion_ids[:room]), "truncated"


def write_tokens(
    rows: Iterable[Conversation],
    path: Path,
    encoder: RowEncoder,
    *,
    max_length: int,
    long_rows: Literal["drop", "truncate"],
) -> RowCounts:
    """The rows as an Arrow stream of `input_ids` and `labels`, beside it (`.json`) the counts. Raises DataError when
    none is left."""
    import pyarrow as pa

    schema = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
    counts, source = RowCounts(), iter(rows)
    with (
        replacing(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_stream(file, schema) as stream,
        tqdm(desc="tokenising", unit=" rows", delay=2) as bar,
    ):
        while batch := list(islice(source, BATCH)):
            kept = []
            for found in encoder.encode(batch):
                row, fate = (
                    (None, f"left out: {found}") if isinstance(found, str) else fitted(found, max_length, long_rows)
                )
                if row is None:
                    counts.fates[fate] += 1
                else:
                    counts.add(row, fate)
                    kept.append({"input_ids": row.input_ids, "labels": row.labels})
            stream.write_batch(pa.RecordBatch.from_pylist(kept, schema=schema))
            bar.update(len(batch))
        if not counts.kept:
            raise DataError(f"no row is left to train on. {counts}")
        # before the tokens are there: who finds those finds their counts
        path.with_suffix(".json").write_text(json.dumps({"text": str(counts), **counts.as_dict()}), encoding="utf-8")
    return counts


def token_key(tokenizer: Any, data: Mapping[str, Any]) -> str:
    """16 hex digits for what decides about the tokens: the tokenizer, its template, and `data`."""
    parts = {"tokenizer": tokenizer.backend_tokenizer.to_str(), "template": tokenizer.chat_template, **data}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
