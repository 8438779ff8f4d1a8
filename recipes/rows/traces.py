"""Finished conversations as if they had just been sampled: judged by the same rewards, chosen by the same rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

from transformers import TrainerState

from data.conversations import Conversation, read_conversations
from data.curate import NgramIndex, contaminated
from data.fingerprint import fingerprint
from data.problem import Problem
from grpo.config import DataConfig
from grpo.distributed import Dist
from grpo.errors import ConfigError
from grpo.policy.load import encode_prompt
from grpo.scoring import score_groups
from grpo.setup import opens_thinking
from grpo.signals import StopRequest
from grpo.types import Rollout, RolloutGroup, ScoredGroup
from recipes.rows.mix_rows import in_template
from recipes.rows.rows_folder import RowsFolder
from rewards.language import question_text
from rewards.rubric import Rubric


@dataclass(frozen=True, kw_only=True)
class Traces:
    """A source (recipes/rows/sources.py): the set `data.dataset_name`, read as `read_conversations` does. Rows that
    follow one another and ask the same are samples of one problem. Only the main process works."""

    data: DataConfig
    tokenizer: Any
    rubric: Rubric
    total: int
    fingerprint: str
    conversational: bool
    think_opened: bool
    index: NgramIndex
    notes: Sequence[str]
    unjudged = True

    @classmethod
    def of(cls, data: DataConfig, tokenizer: Any, rubric: Rubric, index: NgramIndex) -> Traces:
        """Reads the set once, so that what is wrong with it shows before anything is judged; questions that share words
        with the index are left out. Raises ConfigError and DataError; RewardError where the rewards cannot judge it."""
        if data.dataset_name is None:
            raise ConfigError("from_traces reads one set: give its name as dataset_name, and no dataset_mixture")
        names: dict[str, set[str]] = defaultdict(set)  # of the columns, by task
        read, total, gold, first = 0, 0, 0, None

        def problems() -> Iterator[Problem]:
            nonlocal read, total, gold, first
            for problem, _ in _problems(data):
                read += 1
                if contaminated(problem.question, index):
                    continue
                first, total = first or problem, total + 1
                gold += problem.columns["answer"] is not None
                names[problem.task].update(problem.columns)
                yield problem

        digest = fingerprint(problems())
        if first is None:
            raise ConfigError(
                f"dataset_name: {data.dataset_name} holds no conversation that shares nothing with the benchmarks"
            )
        present = sorted(set().union(*names.values()))
        if not gold and data.dataset_answer_column is not None:
            raise ConfigError(
                f"dataset_answer_column: no row of {data.dataset_name} has a gold answer in "
                f"{data.dataset_answer_column!r}; it has {present}. Name the column, or set null to take the "
                "rows without looking at their answers"
            )
        for task, columns in names.items():
            rubric.check_columns({*columns, "task"}, task)
        return cls(
            data=data,
            tokenizer=tokenizer,
            rubric=rubric,
            total=total,
            fingerprint=digest,
            conversational=not isinstance(first.prompt, str),
            think_opened=opens_thinking(first, tokenizer),
            index=index,
            notes=[
                f"{data.dataset_name}: {total} problems with conversations, {gold} of them with a gold answer",
                *([f"{read - total} more share words with a benchmark: left out"] if read > total else []),
            ],
        )

    def lineage(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {"set": identity["dataset_name"]}

    def groups(self, folder: RowsFolder, dist: Dist, stop: StopRequest) -> Iterator[list[ScoredGroup]]:
        asked = (pair for pair in _problems(self.data) if not contaminated(pair[0].question, self.index))
        found = islice(asked, folder.done, None) if dist.is_main else iter(())
        while part := list(islice(found, folder.cfg.problems_per_shard)):
            stop.poll()
            groups = [self._group(problem, texts) for problem, texts in part]
            scored, flat = score_groups(groups, self.rubric, trainer_state=TrainerState(), step=0)
            self.rubric.watch(flat, 0)
            yield scored

    def _group(self, problem: Problem, texts: Sequence[str]) -> RolloutGroup:
        problem = replace(problem, think_opened=self.think_opened)
        return RolloutGroup(problem=problem, rollouts=tuple(spoken(problem, text, self.tokenizer) for text in texts))


def spoken(problem: Problem, text: str, tokenizer: Any) -> Rollout:
    """A finished text as a completion of the problem; `sampler_logprobs` are 0, for nobody sampled it here."""
    tokens = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    return Rollout(
        prompt_ids=tuple(encode_prompt(tokenizer, problem.prompt)),
        completion_ids=tokens,
        sampler_logprobs=(0.0,) * len(tokens),
        text=text,
        stop_reason="eos",
    )


def _problems(data: DataConfig) -> Iterator[tuple[Problem, list[str]]]:
    """Each problem with what was said to it."""
    read = read_conversations(str(data.dataset_name), split=data.dataset_train_split, config=data.dataset_config)
    rows = (in_template(row, data.prompt_template, data.system_prompt) for row in read)
    for _, same in groupby(rows, key=lambda row: row.prompt):
        siblings = list(same)
        yield _problem(siblings[0], data), [row.completion for row in siblings]


def _problem(row: Conversation, data: DataConfig) -> Problem:
    gold = row.columns.get(data.dataset_answer_column) if data.dataset_answer_column is not None else None
    return Problem(
        id=row.id.partition("#")[0],
        question=question_text(row.prompt),
        answer="" if gold is None else str(gold),
        prompt=row.prompt,
        task=row.task,
        source=row.source,
        columns={**row.columns, "answer": gold},
    )
