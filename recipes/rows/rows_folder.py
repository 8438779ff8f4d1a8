"""The folder that a sampling stage fills: rows in shards, and with the last of them everything that is known so far.

`<output_dir>/rows/train-00000.parquet` and on, `report.json`, `lineage.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.conversations import Conversation, ShardWriter, read_conversations
from data.curate import Seen
from grpo.checkpoint.runlock import RunLock
from grpo.errors import CheckpointError, ConfigError
from recipes.rows.choose import Tally
from rewards.language import question_text
from rewards.text import untagged

# Of a row, besides those of every conversation. sampled: what was sampled, where the completion is a rewriting of it.
COLUMNS = {"answer": str, "tokens": int, "reward": float, "pass_rate": float, "sampled": str}


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Where the rows go, and how they are shown."""

    output_dir: str  # the folder; the rows end up in its `rows/`
    # auto: behind the newest shard if there is one; never: refuse a used folder; must: refuse a fresh one
    resume: Literal["auto", "never", "must"] = "never"
    seed: int = 42  # of the draws; at least 0
    # problems that are sampled, judged and written at a time: what a kill loses at most; at least 1
    problems_per_shard: int = 64
    # the prompt as the rows show it: r1_zero, chat or plain as in prompt_template; null: as the model was asked. What
    # R1-Zero solved in its own frame becomes a chat row with `chat`
    rows_template: Literal["r1_zero", "chat", "plain"] | None = None


class RowsFolder:
    """identity: what must be the same for a run to go on. done: problems; mixed: rows that were mixed in."""

    def __init__(self, cfg: RowsConfig, identity: Mapping[str, Any], *, conversational: bool) -> None:
        self.cfg, self.identity, self.conversational = cfg, identity, conversational
        self.path = Path(cfg.output_dir)
        self.rows_path = self.path / "rows"
        self.tally, self.seen = Tally(), Seen()
        self.done = self.mixed = 0

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Locked for this process and, where there are rows, as their last shard left it. Raises ConfigError and
        CheckpointError where `resume` or the identity forbid to go on."""
        with RunLock(self.path):
            self.writer = ShardWriter(self.rows_path, conversational=self.conversational, columns=COLUMNS)
            self._go_on(self.writer.state)
            yield

    def add(self, rows: Sequence[Conversation], *, problems: int = 0, mixed: int = 0) -> None:
        """One shard: the rows of the next problems, or rows mixed in."""
        for row in rows:
            counts = self.tally.of(row.task)
            counts.rows, counts.tokens = counts.rows + 1, counts.tokens + row.columns["tokens"]
        self.done, self.mixed = self.done + problems, self.mixed + mixed
        state = {"identity": self.identity, "tally": self.tally.as_json(), "done": self.done, "mixed": self.mixed}
        self.writer.write(rows, state=state)

    def _go_on(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            if self.cfg.resume == "must":
                raise CheckpointError(f"resume: must, but {self.rows_path} holds no rows")
            return
        if self.cfg.resume == "never":
            raise ConfigError(
                f"{self.rows_path} already holds rows: set `resume: auto` to go on, or another output_dir"
            )
        self._refuse_others(state["identity"])
        self.tally, self.done, self.mixed = Tally.from_json(state["tally"]), state["done"], state["mixed"]
        for row in read_conversations(str(self.rows_path)):
            self.seen.add(question_text(row.prompt), untagged(row.columns["sampled"] or row.completion))

    def _refuse_others(self, then: Mapping[str, Any]) -> None:
        now = self.identity
        changed = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
        if changed:
            told = "\n  ".join(f"{key}: {then.get(key)!r} then, now {now.get(key)!r}" for key in changed)
            raise CheckpointError(
                f"{self.rows_path} holds rows made with other settings, model or data:\n  {told}\nSet them back to go "
                "on, or give another output_dir"
            )
