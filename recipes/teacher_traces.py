"""Traces of a teacher behind an OpenAI-compatible server: what it says to each problem, n times, as conversation rows.

    python -m recipes.teacher_traces --teacher_url http://localhost:8000/v1 --teacher_model deepseek-r1 \
        --dataset_name gsm8k:gsm8k_train.jsonl --output_dir runs/traces

Nothing is judged here: `recipes.make_cold_start --from_traces` keeps the right and readable ones. A teacher that is a
checkpoint is sampled and judged at once by `recipes.rejection_sampling`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data.conversations import Conversation, ShardWriter
from data.fingerprint import fingerprint
from data.problem import Problem
from grpo.checkpoint.runlock import RunLock
from grpo.config import SourceConfig
from grpo.config.parse import parse_flat, to_flat
from grpo.errors import CheckpointError, ConfigError, DataError, EndpointError
from grpo.sampling.endpoint import Answer, Endpoint
from grpo.setup import load_source
from recipes.command import exit_code
from recipes.lineage import write_lineage

# Place, speed and access: other values ask for the same traces.
FREE_KEYS = {"output_dir", "resume", "teacher_url", "teacher_api_key_env", "teacher_timeout", "teacher_concurrency"}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The server, and how it is asked; the defaults are those of R1's evaluation."""

    teacher_url: str  # http://host:port/v1
    teacher_model: str  # the model's name there
    teacher_api_key_env: str = "OPENAI_API_KEY"  # environment variable with the key; unset: no key
    teacher_timeout: float = 1800.0  # seconds of one request
    teacher_concurrency: int = 32  # requests at a time
    temperature: float = 0.6  # of its sampling
    top_p: float = 0.95  # smallest set of tokens with this much probability
    max_completion_length: int = 32768  # tokens; an answer that is cut off is left out and counted
    num_generations: int = 4  # answers to each problem; at least 1


@dataclass(frozen=True, kw_only=True)
class TracesFolderConfig:
    """Where the rows go."""

    output_dir: str  # the folder of the shards
    # auto: behind the newest shard if there is one; never: refuse a used folder; must: refuse a fresh one
    resume: Literal["auto", "never", "must"] = "never"
    seed: int = 42  # of the teacher's draws, where its server takes one
    problems_per_shard: int = 64  # problems that are asked and written at a time: what a kill loses at most; at least 1


@dataclass(frozen=True, kw_only=True)
class TeacherTracesConfig:
    data: SourceConfig
    teacher: TeacherConfig
    folder: TracesFolderConfig


def parse(argv: Sequence[str]) -> TeacherTracesConfig:
    return parse_flat(argv, TeacherTracesConfig)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: collect(parse(given)))


@dataclass(kw_only=True)
class Progress:
    """What the newest shard knows: the first `done` problems were asked, and those at `failed` have no answer yet.
    fates: of the answers of the others, and how many each had."""

    done: int = 0
    failed: list[int] = field(default_factory=list)
    fates: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.fates = Counter(self.fates)


def collect(cfg: TeacherTracesConfig) -> int:
    """Ask for what is not there yet. Raises EndpointError before any work where the server does not answer for the
    model, when it is lost on the way, and at the end where it left problems unanswered; DataError where no answer could
    be kept; ConfigError, CheckpointError where the folder holds something else."""
    began = time.monotonic()
    with RunLock(Path(cfg.folder.output_dir)):
        problems = _problems(cfg.data)
        identity = {key: value for key, value in to_flat(cfg).items() if key not in FREE_KEYS}
        identity["problems"] = fingerprint(problems)
        writer = ShardWriter(
            cfg.folder.output_dir, conversational=not isinstance(problems[0].prompt, str), columns={"answer": str}
        )
        progress = _progress(writer, cfg.folder, identity)
        left = [*progress.failed, *range(progress.done, len(problems))]
        endpoint = _endpoint(cfg.teacher)
        if left:
            endpoint.check(problems[0].prompt)
        with tqdm(total=len(problems), initial=len(problems) - len(left), desc="asking", unit=" problems") as bar:
            for start in range(0, len(left), cfg.folder.problems_per_shard):
                part = left[start : start + cfg.folder.problems_per_shard]
                rows = _asked(problems, part, endpoint, cfg, progress)
                writer.write(rows, state={"identity": identity, **vars(progress)})
                bar.update(len(part))
        finish(cfg, progress, identity["problems"], time.monotonic() - began)
    return 0


def finish(cfg: TeacherTracesConfig, progress: Progress, problems: str, seconds: float) -> None:
    """Lineage, and what became of all answers, those before a resume included. `problems`: their fingerprint."""
    write_lineage(
        cfg.folder.output_dir,
        stage="teacher_traces",
        inputs={"teacher": cfg.teacher.teacher_model, "problems": str(cfg.data.dataset_name)},
        config=cfg,
        seconds=seconds,
        counts={
            "problems": progress.done,
            "unanswered": len(progress.failed),
            **progress.fates,
            "problems_sha256": problems,
        },
    )
    fates = ", ".join(f"{n:,} {fate}" for fate, n in progress.fates.most_common())
    print(f"{progress.fates.total():,} answers: {fates or 'none'}", flush=True)
    if progress.failed:
        raise EndpointError(
            f"{len(progress.failed)} of {progress.done} problems have no answer from the server (see above). What came "
            "is stored: run the same command with `--resume auto` to ask for the rest"
        )
    if not progress.fates["kept"]:
        raise DataError(
            f"no answer could be kept: {fates}. Raise max_completion_length where they are cut off, and see what the "
            "server says where they are empty"
        )


def _problems(data: SourceConfig) -> list[Problem]:
    if data.dataset_name is None:
        raise ConfigError("dataset_name is required: give it as --dataset_name")
    loaded = load_source(data, data.dataset_train_split)
    print(loaded.report, flush=True)
    return loaded.problems


def _progress(writer: ShardWriter, cfg: TracesFolderConfig, identity: Mapping[str, Any]) -> Progress:
    """How far the folder is."""
    if writer.state is None:
        if cfg.resume == "must":
            raise CheckpointError(f"resume: must, but {cfg.output_dir} holds no traces")
        return Progress()
    if cfg.resume == "never":
        raise ConfigError(f"{cfg.output_dir} already holds rows: set `resume: auto` to go on, or another output_dir")
    then = dict(writer.state)
    before = then.pop("identity")
    changed = [key for key in sorted(before.keys() | identity.keys()) if before.get(key) != identity.get(key)]
    if changed:
        raise CheckpointError(
            f"{cfg.output_dir} holds rows of another {', '.join(changed)}: set it back, or give another output_dir"
        )
    return Progress(**then)


def _endpoint(cfg: TeacherConfig) -> Endpoint:
    return Endpoint(
        cfg.teacher_url,
        cfg.teacher_model,
        api_key_env=cfg.teacher_api_key_env,
        timeout=cfg.teacher_timeout,
        concurrency=cfg.teacher_concurrency,
    )


def _asked(
    problems: Sequence[Problem], part: Sequence[int], endpoint: Endpoint, cfg: TeacherTracesConfig, progress: Progress
) -> list[Conversation]:
    """The rows of a shard, in the problems' order, and `progress` behind it; a request's seed depends on its problem,
    not on what is done. A problem of which a request failed leaves no row, and is asked again as a whole. Raises
    EndpointError where the server is lost."""
    teacher = cfg.teacher
    answers = endpoint.answers(
        [problems[number].prompt for number in part],
        n=teacher.num_generations,
        temperature=teacher.temperature,
        top_p=teacher.top_p,
        max_tokens=teacher.max_completion_length,
        seed=cfg.folder.seed,
    )
    received = {part[index]: texts for index, texts in sorted(answers, key=lambda answered: answered[0])}
    errors = {number: [text.error for text in texts if text.error is not None] for number, texts in received.items()}
    failed = [number for number in part if errors[number]]
    if failed:
        endpoint.check(problems[0].prompt)
    for number in failed:
        print(f"{problems[number].id}: no answer ({errors[number][0]})", flush=True)
    progress.done = max(progress.done, part[-1] + 1)
    progress.failed = sorted({*progress.failed} - {*part} | {*failed})
    whole = [(problems[number], texts) for number, texts in received.items() if not errors[number]]
    progress.fates.update(_fate(answer) for _, texts in whole for answer in texts)
    return [
        _row(problem, answer, number, teacher)
        for problem, texts in whole
        for number, answer in enumerate(texts)
        if _fate(answer) == "kept"
    ]


def _fate(answer: Answer) -> str:
    return "cut off" if answer.finish_reason == "length" else "kept" if answer.text.strip() else "empty"


def _row(problem: Problem, answer: Answer, number: int, teacher: TeacherConfig) -> Conversation:
    return Conversation(
        id=f"{problem.id}#{number}",
        prompt=problem.prompt,
        completion=answer.text,
        task=problem.task,
        source=problem.source,
        lineage={"teacher": teacher.teacher_model, "temperature": teacher.temperature, "top_p": teacher.top_p},
        columns={"answer": problem.answer},
    )


if __name__ == "__main__":
    sys.exit(main())
