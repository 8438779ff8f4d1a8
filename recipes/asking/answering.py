"""Who answers an evaluation's questions: a checkpoint that is loaded here, a server, or a file of completions.

Each yields rows of whole problems, as they come, a piece of work at a time, without those that are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from data.problem import DataError, Problem
from data.readers import Row as DataRow
from data.readers import read_rows
from data.report import BadRow
from grpo.config import ModelConfig, RunConfig
from grpo.config.coerce import build
from grpo.config.parse import to_flat
from grpo.distributed import Dist
from grpo.errors import ConfigError, EndpointError, ToolkitError
from grpo.monitor.completions import Row, Sample, rows_of, rows_of_group
from grpo.prompts import prompt_lengths, room_notes
from grpo.sampled import sampled
from grpo.sampling.endpoint import Answer, Endpoint
from grpo.scoring import score_texts
from grpo.setup import build_policy
from grpo.signals import Interrupted, StopRequest
from recipes.asking.asked import Asked, ProtocolConfig, sha256_of
from recipes.lineage import frame_trained_in
from rewards.rubric import Rubric

Done = Mapping[str, Set[int]]
VERDICTS = {"true": True, "1": True, "false": False, "0": False}  # as a file spells them
ENDS = {"stop": "eos", "length": "length"}  # a server's word -> ours
OF_A_ROW = ("template_sha256", "temperature", "top_p", "max_completion_length", "seed")  # of the protocol


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A model behind an OpenAI-compatible server; `model_name_or_path` is its name there."""

    base_url: str | None = None  # http://host:port/v1; null: the model is loaded here
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable with the key, where one is needed
    server_timeout: float = 1800.0  # seconds of one request
    server_retries: int = 5  # further tries of a request that failed
    server_concurrency: int = 32  # requests at a time


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Completions that are there already, graded as if a model had just given them. A column inside another is
    `outer.inner`; `model_name_or_path` says whose they are."""

    samples: str | None = None  # a .jsonl, .json, .parquet or .csv file; null: somebody is asked
    samples_prompt_column: str = "prompt"  # column of the question
    samples_answer_column: str = "answer"  # column of the gold answer
    # columns of the completions; a column may also hold a list of them
    samples_completion_columns: list[str] = field(default_factory=lambda: ["completion"])
    # columns with the file's own verdicts (true | false, or 1 | 0) on them, to compare with; empty: there are none
    samples_correct_columns: list[str] = field(default_factory=list)


class Answering(Protocol):
    def ready(self, asked: Sequence[Asked]) -> list[str]:
        """Refuse here what cannot work, before any long work; notes for a person."""
        ...

    def rows(self, asked: Sequence[Asked], done: Done, dist: Dist, stop: StopRequest) -> Iterator[list[Row]]:
        """Rows of the problems that are not in `done`: everybody's on the main process, none on the others
        (collective). Raises Interrupted."""
        ...


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model folder or Hub id, sampled in this process (or these) by the engine that training samples with."""

    run: RunConfig
    protocol: ProtocolConfig
    tokenizer: Any

    @classmethod
    def of(cls, model: ModelConfig, protocol: ProtocolConfig, tokenizer: Any) -> Checkpoint:
        unused = {"output_dir": "", "dataset_name": "", "reward_funcs": []}
        length = {"max_completion_length": protocol.max_completion_length}
        return cls(run=build(RunConfig, to_flat(model) | unused | length), protocol=protocol, tokenizer=tokenizer)

    def ready(self, asked: Sequence[Asked]) -> list[str]:
        notes = [note for one in asked for note in room_notes(self.run, prompt_lengths(one.problems, self.tokenizer))]
        trained = frame_trained_in(self.run.model.model_name_or_path)
        graded = [one for one in asked if any(problem.answer is not None for problem in one.problems)]
        other = [one.name for one in graded if trained not in (None, one.protocol["prompt_template"])]
        if other:
            notes.append(
                f"WARNING: {', '.join(other)}: not asked in the frame that the model was trained in: set "
                f"`prompt_template: {trained}`, or know that a frame it never saw may cost it most of its answers"
            )
        return notes

    def rows(self, asked: Sequence[Asked], done: Done, dist: Dist, stop: StopRequest) -> Iterator[list[Row]]:
        left = [one for one in asked if len(done[one.name]) < len(one.problems)]
        policy = build_policy(self.run, dist, None) if left else None
        for one in left:
            number = len(done[one.name])  # problems are sampled in order
            for groups in sampled(
                policy,
                one.problems,
                one.rubric,
                sampling=self.protocol.sampling(one.samples),
                seed=self.protocol.seed,
                dist=dist,
                chunk=self.protocol.problems_per_chunk,
                skip=number,
                stop=stop,
            ):
                rows = [stamped(one, n, rows_of_group(group)) for n, group in enumerate(groups, number)]
                number += len(groups)
                yield [row for of_problem in rows for row in of_problem]


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model behind HTTP. Answers are graded as they come; a problem with a request that failed for good is left out,
    to be asked again by the next run."""

    endpoint: Endpoint
    protocol: ProtocolConfig

    @classmethod
    def of(cls, model: ModelConfig, server: ServerConfig, protocol: ProtocolConfig) -> Server:
        endpoint = Endpoint(
            str(server.base_url),
            model.model_name_or_path,
            api_key_env=server.api_key_env,
            timeout=server.server_timeout,
            retries=server.server_retries,
            concurrency=server.server_concurrency,
        )
        return cls(endpoint=endpoint, protocol=protocol)

    def ready(self, asked: Sequence[Asked]) -> list[str]:
        if self.protocol.stop_strings or self.protocol.sampler != "fast":
            raise ConfigError("stop_strings and sampler are settings of a model that is loaded here: leave them out")
        self.endpoint.check(asked[0].problems[0].prompt)
        return [f"{self.endpoint.model} answers at {self.endpoint.base_url}"]

    def rows(self, asked: Sequence[Asked], done: Done, dist: Dist, stop: StopRequest) -> Iterator[list[Row]]:
        return gathered(self._problems(asked, done, stop), self.protocol.problems_per_chunk)

    def _problems(self, asked: Sequence[Asked], done: Done, stop: StopRequest) -> Iterator[list[Row]]:
        """Raises EndpointError when the server is lost, and at the end for requests that failed."""
        failed: list[str] = []
        for one in asked:
            left = [number for number in range(len(one.problems)) if number not in done[one.name]]
            answers = self.endpoint.answers(
                (one.problems[number].prompt for number in left),
                n=one.samples,
                temperature=self.protocol.temperature,
                top_p=self.protocol.top_p,
                max_tokens=self.protocol.max_completion_length,
                seed=self.protocol.seed,
                poll=stop.poll,
            )
            for index, given in answers:
                if errors := [answer.error for answer in given if answer.error]:
                    failed.append(f"problem {left[index]} of {one.name}: {errors[0]}")
                else:
                    yield graded(one, left[index], [_sample(answer) for answer in given])
        if failed:
            raise EndpointError(
                f"{len(failed)} problems have no answer from the server, the first: {failed[0]}. What came is stored; "
                "run the same command again to ask for the rest"
            )


@dataclass(frozen=True, kw_only=True)
class Given:
    """A file of completions; `texts[p]` are those of problem p."""

    texts: Sequence[Sequence[str]]
    protocol: ProtocolConfig

    def ready(self, asked: Sequence[Asked]) -> list[str]:
        return []

    def rows(self, asked: Sequence[Asked], done: Done, dist: Dist, stop: StopRequest) -> Iterator[list[Row]]:
        return gathered(self._problems(asked, done, stop), self.protocol.problems_per_chunk)

    def _problems(self, asked: Sequence[Asked], done: Done, stop: StopRequest) -> Iterator[list[Row]]:
        (one,) = asked
        for number in range(len(one.problems)):
            if number not in done[one.name]:
                stop.poll()
                yield graded(one, number, [Sample(text=t, stop_reason=None, length=None) for t in self.texts[number]])


def gathered(problems: Iterator[list[Row]], size: int) -> Iterator[list[Row]]:
    """The rows of `size` problems at a time; where the stream breaks, what came is handed on first."""
    rows: list[Row] = []
    count = 0
    try:
        for of_problem in problems:
            rows, count = rows + of_problem, count + 1
            if count == size:
                yield rows
                rows, count = [], 0
    except (ToolkitError, Interrupted):
        if rows:
            yield rows
        raise
    if rows:
        yield rows


def given_samples(
    cfg: SamplesConfig, protocol: ProtocolConfig, reward_funcs: Sequence[Any]
) -> tuple[Asked, Given, list[list[bool]]]:
    """The questions of a file of completions, its completions, and its own verdicts on them ([] where it has none).

    Raises DataError for a file without a row, a row without one of the columns, verdicts that are not as many as the
    completions, and one that is neither right nor wrong.
    """
    problems, texts, verdicts = [], [], []
    path = Path(str(cfg.samples))
    for row in read_rows(str(path), config=None, split="train"):
        if isinstance(row, BadRow):
            raise DataError(f"{path}, {row.place}: {row.reason}")
        problem, said, judged = _given(row, cfg, path)
        problems.append(problem)
        texts.append(said)
        verdicts.append(judged)
    if not problems:
        raise DataError(f"{path} holds no row: give a file of questions with their completions")
    sizes = {len(of_problem) for of_problem in texts}
    if len(sizes) != 1:
        raise DataError(f"{path}: rows hold {sorted(sizes)} completions; give every question the same number")
    asked = Asked(
        name=path.stem,
        problems=problems,
        rubric=Rubric.from_config(reward_funcs),
        protocol={
            "problems": len(problems),
            "problems_sha256": sha256_of([[problem.prompt, problem.answer] for problem in problems]),
            "num_generations": sizes.pop(),
            "reward_funcs": list(reward_funcs),
        },
        votes=True,
        note=f"{path}: {len(problems)} questions with their completions",
    )
    return asked, Given(texts=texts, protocol=protocol), verdicts


def _given(row: DataRow, cfg: SamplesConfig, path: Path) -> tuple[Problem, list[str], list[bool]]:
    """One question, its completions, and the file's verdicts on them."""
    question, gold = str(_inside(row, cfg.samples_prompt_column)), str(_inside(row, cfg.samples_answer_column))
    said = [str(text) for text in _all(row, cfg.samples_completion_columns)]
    verdicts = [_verdict(value, row.place) for value in _all(row, cfg.samples_correct_columns)]
    if cfg.samples_correct_columns and len(verdicts) != len(said):
        raise DataError(
            f"{path}, {row.place}: {len(said)} completions and {len(verdicts)} verdicts: samples_correct_columns must "
            "give one for each completion, or be empty"
        )
    problem = Problem(
        id=f"{path.name}:{row.place.split()[1]}",
        question=question,
        answer=gold,
        prompt=question,
        task=path.stem,
        source=str(path),
        columns={"answer": gold},
    )
    return problem, said, verdicts


def graded(asked: Asked, number: int, samples: Sequence[Sample]) -> list[Row]:
    """The rows of one problem's completions, judged here. Raises RewardError."""
    problem = asked.problems[number]
    scored = score_texts(problem, [sample.text for sample in samples], asked.rubric)
    return stamped(asked, number, rows_of(problem, samples, scored.rewards, scored.correct, scored))


def stamped(asked: Asked, number: int, rows: Sequence[Row]) -> list[Row]:
    """Rows of one problem with where they belong and the protocol under which they were made."""
    problem = asked.problems[number]
    stamp = {"benchmark": asked.name, "problem": number, "prompt_sha256": sha256_of(problem.prompt)}
    stamp |= {key: asked.protocol.get(key) for key in OF_A_ROW}
    return [{**row, **stamp, "think_opened": problem.think_opened} for row in rows]


def _sample(answer: Answer) -> Sample:
    end = ENDS.get(answer.finish_reason, "stop" if answer.finish_reason else None)
    return Sample(text=answer.text, stop_reason=end, length=answer.tokens)


def _all(row: DataRow, columns: Sequence[str]) -> list[Any]:
    values = [_inside(row, column) for column in columns]
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _verdict(value: Any, place: str) -> bool:
    try:
        return VERDICTS[str(value).strip().lower()]
    except KeyError as error:
        raise DataError(f"{place}: the verdict is {value!r}; allowed: {', '.join(VERDICTS)}") from error


def _inside(row: DataRow, column: str) -> Any:
    value: Any = row.columns
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise DataError(f"{row.place} has no column {column!r}; it has {', '.join(row.columns)}")
        value = value[name]
    return value
