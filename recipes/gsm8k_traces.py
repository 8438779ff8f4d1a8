"""GSM8K's own worked solutions as conversation rows: a small set of real traces for supervised fine-tuning.

python -m recipes.gsm8k_traces --dataset_name gsm8k:gsm8k_train.jsonl --output_dir runs/gsm8k_traces

The steps go between `<think>` tags without their `<<48/2=24>>` marks for a calculator, the number behind `####` between
`<answer>` tags: the form that the rewards `accuracy` and `format` pay for.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.conversations import Conversation, ShardWriter
from data.fingerprint import fingerprint
from data.problem import DataError, Problem
from data.sources import load_problems
from grpo.config.parse import parse_flat
from grpo.errors import ConfigError
from recipes.command import exit_code
from recipes.lineage import write_lineage

CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True, kw_only=True)
class TracesConfig:
    """From GSM8K's rows to rows of `prompt` and `completion`."""

    output_dir: str  # folder of the rows
    # auto: the same rows are left as they are; never: refuse a folder with rows
    resume: Literal["auto", "never"] = "never"
    dataset_name: str = "gsm8k:openai/gsm8k"  # gsm8k:<path or Hub id>
    dataset_config: str | None = None  # name of a configuration of a Hub data set
    dataset_train_split: str = "train"  # split that is converted
    prompt_template: Literal["r1_zero", "chat", "plain"] = "r1_zero"  # the one that the model is used with
    rows: int | None = None  # the first so many; null: all


def parse(argv: Sequence[str]) -> TracesConfig:
    return parse_flat(argv, TracesConfig)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: convert(parse(given)))


def convert(cfg: TracesConfig) -> int:
    """Writes one shard. Raises DataError for rows that are not GSM8K's, ConfigError where there are other ones."""
    began = time.monotonic()
    writer = ShardWriter(Path(cfg.output_dir), conversational=cfg.prompt_template == "chat", columns={"answer": str})
    loaded = load_problems(
        cfg.dataset_name, config=cfg.dataset_config, split=cfg.dataset_train_split, template=cfg.prompt_template
    )
    problems = loaded.problems[: cfg.rows]
    state = {"problems": fingerprint(problems)}
    if writer.next and (cfg.resume == "never" or writer.state != state):
        raise ConfigError(
            f"output_dir: {cfg.output_dir} already holds rows, and resume is {cfg.resume}: give another one"
        )
    if not writer.next:
        writer.write(map(trace, problems), state=state)
    write_lineage(
        cfg.output_dir,
        stage="gsm8k_traces",
        inputs={"problems": cfg.dataset_name.removeprefix("gsm8k:")},
        config=cfg,
        seconds=time.monotonic() - began,
        counts={"rows": len(problems)},
    )
    print(f"{loaded.report}\n{len(problems):,} traces in {cfg.output_dir}")
    return 0


def trace(problem: Problem) -> Conversation:
    """One row; its completion is right by construction, for both parts are GSM8K's."""
    if "rationale" not in problem.columns:
        raise DataError(f"row {problem.id!r} has no worked solution: give gsm8k:<path or Hub id> as dataset_name")
    thinking = CALCULATOR.sub("", problem.columns["rationale"])
    return Conversation(
        id=problem.id,
        prompt=problem.prompt,
        completion=f"<think>{thinking}</think> <answer>{problem.answer}</answer>",
        task=problem.task,
        source=problem.source,
        columns={"answer": problem.answer},
    )


if __name__ == "__main__":
    sys.exit(main())
