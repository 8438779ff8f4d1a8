"""The rows that a stage of supervised fine-tuning trains on: one set or several, as a file of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from data.conversations import Conversation, read_conversations
from grpo.config import ModelConfig
from grpo.config.mixture import entries
from grpo.config.schema import require_one_source
from grpo.distributed import Dist
from grpo.policy.load import load_generation_config, load_model_config, require_model, stop_token_ids
from recipes.lineage import fingerprint_of
from recipes.tuning.sft_rows import IGNORED, RowEncoder, token_key, write_tokens


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """One set: our own rows, `prompt` + `completion`, `messages`, or open-r1's, in a file, a folder or a Hub set."""

    dataset_name: str | None = None  # a .jsonl, .json or .parquet file, a folder of shards, or a Hub id
    dataset_config: str | None = None  # name of a configuration of a Hub data set
    dataset_train_split: str = "train"  # split that is trained on
    dataset_test_split: str | None = None  # held-out rows, whose loss is measured (`eval_strategy`); null: none are


@dataclass(frozen=True, kw_only=True)
class ConversationsConfig(RowSource):
    """The rows: one set, or several in `dataset_mixture`, one after another; the trainer shuffles them."""

    # several sets in place of dataset_name: mappings with the keys above (what one does not say is as here), and keep:
    # the share of its rows to use, the first ones. An epoch is every row of all once; null: dataset_name alone
    dataset_mixture: list[dict[str, Any]] | None = None
    max_length: int = 32768  # tokens of a row and of a packed row, prompt included; R1's
    # what becomes of longer rows: left out, or cut, whose end the model then never sees; both are counted
    long_rows: Literal["drop", "truncate"] = "drop"

    def __post_init__(self) -> None:
        require_one_source(self.dataset_name, self.dataset_mixture)
        self.sources()

    def sources(self) -> list[RowEntry]:
        """At least one. Raises ConfigError for an entry that is none."""
        return entries(self, RowEntry)

    def held_out(self) -> list[RowEntry]:
        """The test splits of those that name one."""
        named = [(source, source.dataset_test_split) for source in self.sources()]
        return [replace(source, dataset_train_split=split, keep=1.0) for source, split in named if split is not None]


@dataclass(frozen=True, kw_only=True)
class RowEntry(RowSource):
    """One entry of `dataset_mixture`."""

    keep: float = 1.0  # share of its rows, the first ones, that are used at all; above 0 and at most 1

    def rows(self) -> Iterator[Conversation]:
        """Raises DataError, as `read_conversations` does."""
        if self.keep == 1:
            return self._all()
        return islice(self._all(), math.ceil(self.keep * sum(1 for _ in self._all())))

    def _all(self) -> Iterator[Conversation]:
        return read_conversations(str(self.dataset_name), split=self.dataset_train_split, config=self.dataset_config)

    @property
    def place(self) -> str:
        """Where the split's rows are: a path, or a Hub id."""
        return str(self.dataset_name).replace("{split}", self.dataset_train_split)

    def identity(self) -> dict[str, Any]:
        """The content of what is on this disk, else the name."""
        path = Path(self.place)
        origin = fingerprint_of(path) if path.exists() else [self.dataset_name, self.dataset_config]
        return {"data": origin, "split": self.dataset_train_split}


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """Where the tokens of a run's rows are, or will be: the name says what they were made from and how."""

    path: Path
    sources: Sequence[RowEntry]
    encoder: RowEncoder
    max_length: int
    long_rows: Literal["drop", "truncate"]

    def made(self, dist: Dist) -> dict[str, Any]:
        """Makes the file unless an earlier start did (collective), shows its first row, and returns its counts."""
        if dist.is_main:
            if not self.path.exists():
                rows = (row for source in self.sources for row in source.rows())
                write_tokens(rows, self.path, self.encoder, max_length=self.max_length, long_rows=self.long_rows)
            self.show()
        dist.barrier()
        return json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))

    def dataset(self) -> Any:
        from datasets import Dataset

        return Dataset.from_file(str(self.path))

    def show(self) -> None:
        """What became of the rows, and the first of them as it is trained on."""
        text = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))["text"]
        first = self.dataset()[0]
        start = first["labels"].count(IGNORED)
        decode = self.encoder.tokenizer.decode
        prompt, said = decode(first["input_ids"][:start]), decode(first["input_ids"][start:])
        print(f"{', '.join(source.place for source in self.sources)}: {text}; max_length {self.max_length:,}")
        print(f"the first row, with a loss on what stands after the arrow:\n{prompt}\n-->\n{said}", flush=True)


def token_files(
    model: ModelConfig, data: ConversationsConfig, output_dir: Path, *, held_out: Sequence[RowEntry] = ()
) -> tuple[TokenFile, TokenFile | None]:
    """Of the rows to train on, and of those held out, where there are any. Reads the model's tokenizer and config, and
    nothing else. Rows never exceed the positions that the model has."""
    tokenizer = require_model(model)
    encoder = RowEncoder(tokenizer, stop_token_ids(tokenizer, load_generation_config(model)))
    positions = getattr(load_model_config(model).get_text_config(), "max_position_embeddings", data.max_length)
    max_length = min(data.max_length, positions)

    def of(sources: Sequence[RowEntry]) -> TokenFile:
        found = [source.identity() | ({"keep": source.keep} if source.keep < 1 else {}) for source in sources]
        what = {
            **(found[0] if len(found) == 1 else {"mixture": found}),
            "max_length": max_length,
            "long_rows": data.long_rows,
            "ends": sorted(encoder.stop_ids),
        }
        path = output_dir / "tokens" / f"{token_key(tokenizer, what)}.arrow"
        return TokenFile(path=path, sources=sources, encoder=encoder, max_length=max_length, long_rows=data.long_rows)

    return of(data.sources()), of(held_out) if held_out else None
