"""Rows of another kind (writing, questions of fact, a model's earlier training rows), mixed in by a stated share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from data.conversations import Conversation, read_conversations
from data.curate import NgramIndex, contaminated
from data.templates import Template, build_prompt
from grpo.config import DataConfig
from grpo.errors import ConfigError, DataError
from recipes.rows.rows_folder import RowsConfig, RowsFolder
from rewards.language import question_text
from rewards.text import readable

ROWS_PER_SHARD = 1000


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Finished conversations that are added to the sampled rows, such as R1's 200,000 non-reasoning ones."""

    # conversations to add: a .jsonl, .json or .parquet file, a folder or a Hub id, with `messages`, or with `prompt`
    # and `completion`; null: none
    mix_dataset: str | None = None
    mix_config: str | None = None  # name of a configuration of a Hub data set
    mix_split: str = "train"  # its split
    mix_share: float = 0.25  # of all rows in the end (R1: a quarter); above 0 and below 1
    mix_task: str = "general"  # the domain of rows that name none


@dataclass(frozen=True, kw_only=True)
class Others:
    """A set that was read through once: `total` rows, all of them conversations, `left_out` more that share words with
    a benchmark."""

    cfg: MixConfig
    template: Template
    system_prompt: str | None
    tokenizer: Any
    index: NgramIndex
    total: int
    left_out: int

    @classmethod
    def of(cls, cfg: MixConfig, data: DataConfig, rows: RowsConfig, tokenizer: Any, index: NgramIndex) -> Others | None:
        """None where nothing is mixed in. Raises ConfigError and DataError, before anything is sampled."""
        if cfg.mix_dataset is None:
            return None
        if not 0 < cfg.mix_share < 1:
            raise ConfigError(f"mix_share: got {cfg.mix_share}; allowed: above 0 and below 1")
        template = rows.rows_template or data.prompt_template
        dirty = [_shares_words(row, index) for row in _read(cfg) if in_template(row, template)]
        return cls(
            cfg=cfg,
            template=template,
            system_prompt=data.system_prompt,
            tokenizer=tokenizer,
            index=index,
            total=dirty.count(False),
            left_out=dirty.count(True),
        )

    def rows(self, count: int, seed: int) -> Iterator[Conversation]:
        """`count` of them, drawn without repetition, in the order of the set."""
        drawn = set(random.Random(f"{seed}/mix").sample(range(self.total), count))
        clean = (row for row in _read(self.cfg) if not _shares_words(row, self.index))
        for number, row in enumerate(clean):
            if number in drawn:
                yield self._one_of_ours(row)

    def _one_of_ours(self, row: Conversation) -> Conversation:
        row = in_template(row, self.template, self.system_prompt)
        return replace(
            row,
            task=self.cfg.mix_task if row.task == "default" else row.task,
            lineage=row.lineage or {"stage": "mixed in", "set": self.cfg.mix_dataset},
            columns={"tokens": 1 + len(self.tokenizer(row.completion, add_special_tokens=False)["input_ids"])},
        )


def _read(cfg: MixConfig) -> Iterator[Conversation]:
    return read_conversations(str(cfg.mix_dataset), split=cfg.mix_split, config=cfg.mix_config)


def _shares_words(row: Conversation, index: NgramIndex) -> bool:
    """Whether any turn of the prompt does."""
    turns = [row.prompt] if isinstance(row.prompt, str) else [str(message["content"]) for message in row.prompt]
    return any(contaminated(turn, index) for turn in turns)


def mix_in(folder: RowsFolder, others: Others | None) -> None:
    """Add the share that is asked for; where the set is too small, all of it, with a warning."""
    if others is None:
        return
    if others.left_out:
        print(f"{others.cfg.mix_dataset}: {others.left_out:,} conversations share words with a benchmark: left out")
    share = others.cfg.mix_share
    sampled = folder.tally.total.rows - folder.mixed
    wanted = round(sampled * share / (1 - share))
    if wanted > others.total:
        print(
            f"WARNING: mix_share={share:g} beside {sampled:,} sampled rows asks for {wanted:,}; "
            f"{others.cfg.mix_dataset} has {others.total:,}, a share of {others.total / (sampled + others.total):.1%}",
            flush=True,
        )
    rows = islice(others.rows(min(wanted, others.total), folder.cfg.seed), folder.mixed, None)
    while part := list(islice(rows, ROWS_PER_SHARD)):
        folder.add(part, mixed=len(part))


def in_template(row: Conversation, template: Template, system_prompt: str | None = None) -> Conversation:
    """The row with its question shown as the template says; a conversation of several turns stays as it is.

    A `<think>` with which the prompt ended goes over to the completion. Raises DataError for a conversation of several
    turns where the template is text.
    """
    prompt = row.prompt
    if not isinstance(prompt, str) and (template == "chat" or len(prompt) != 1):
        if template != "chat":
            raise DataError(
                f"{row.source}, row {row.id}: a conversation of {len(prompt)} messages, and the template {template} is "
                "one question as text: set `chat`"
            )
        return row
    shown = build_prompt(question_text(prompt), template=template, system_prompt=system_prompt)
    return replace(row, prompt=shown, completion=readable(prompt, row.completion))
