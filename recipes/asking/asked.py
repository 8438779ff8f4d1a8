"""What an evaluation asks: benchmarks with their problems and verifier, and the protocol that makes two runs alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from data.benchmarks import BENCHMARKS
from data.problem import Problem
from data.readers import FILE_TYPES
from data.report import LoadedProblems
from data.templates import R1_ZERO_TEMPLATE
from grpo.config import SamplingConfig, SourceConfig
from grpo.config.coerce import build, key_types, refuse_unknown
from grpo.errors import ConfigError
from grpo.setup import load_source, opens_thinking
from rewards.rubric import Rubric

SAMPLES = 16  # of each problem, where R1's protocol has no number


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(SourceConfig):
    """What is asked. `dataset_name`: as in training, or a benchmark: gsm8k, math500, aime24, aime25, gpqa,
    livecodebench, alone (its Hub id) or with a path or Hub id (`math500:rows.jsonl`). A file is taken whole."""

    # several in place of dataset_name: names, or mappings with the keys of this group and num_generations
    benchmarks: list[str | dict[str, Any]] = field(default_factory=list)
    num_problems: int | None = None  # the first problems of each benchmark; null: all
    instruction: str | None = None  # put after every question, for example how to mark the answer
    # what judges the answers; null: what the benchmark needs (accuracy, choice, gym, binary_code)
    reward_funcs: list[str | dict[str, Any]] | None = None
    allow_bad_rows: bool = False  # go on without rows that cannot be read or judged

    def __post_init__(self) -> None:
        if self.num_problems is not None and self.num_problems < 1:
            raise ConfigError(f"num_problems: got {self.num_problems}; allowed: at least 1, or null for all")


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """How it is sampled; the defaults are DeepSeek-R1's protocol."""

    # completions of each problem; null: R1's number (AIME and GPQA 64, MATH-500 16, LiveCodeBench 8), else 16
    num_generations: int | None = None
    temperature: float = 0.6  # of sampling; above 0
    top_p: float = 0.95  # smallest set of tokens with this much probability; above 0, 1: all
    max_completion_length: int = 32_768  # tokens; what is longer is cut off and counted
    stop_strings: list[str] = field(default_factory=list)  # texts that end a completion
    seed: int = 1234  # of the draws; at least 0
    problems_per_chunk: int = 64  # problems sampled, stored and, after a kill, lost at a time
    # fast: the built-in engine, where it knows the model's family; reference: transformers' generate
    sampler: Literal["fast", "reference"] = "fast"
    max_tokens_in_flight: int = 262_144  # tokens of cache that the fast sampler may hold

    def __post_init__(self) -> None:
        faults = [
            ("num_generations", "null, or at least 1", self.num_generations is None or self.num_generations >= 1),
            ("temperature", "above 0", self.temperature > 0),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("max_completion_length", "at least 1", self.max_completion_length >= 1),
            ("problems_per_chunk", "at least 1", self.problems_per_chunk >= 1),
        ]
        if wrong := [(key, allowed) for key, allowed, good in faults if not good]:
            told = (f"{key}: got {getattr(self, key)!r}; allowed: {allowed}" for key, allowed in wrong)
            raise ConfigError("\n".join(told))

    def sampling(self, num_generations: int) -> SamplingConfig:
        return SamplingConfig(
            num_generations=num_generations,
            max_completion_length=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            stop_strings=self.stop_strings,
            sampler=self.sampler,
            max_tokens_in_flight=self.max_tokens_in_flight,
        )


@dataclass(frozen=True, kw_only=True)
class EntryConfig(BenchmarkConfig):
    """One entry of `benchmarks`."""

    name: str | None = None  # in figures and comparisons; null: the benchmark's own
    num_generations: int | None = None  # as in the protocol


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One benchmark, ready to be asked. protocol: all that decides about the samples, besides the model. votes: whether
    answers can be compared, for cons@k. note: what became of its rows."""

    name: str
    problems: Sequence[Problem]
    rubric: Rubric
    protocol: Mapping[str, Any]
    votes: bool
    note: str

    @property
    def samples(self) -> int:
        return self.protocol["num_generations"]


def entries(cfg: BenchmarkConfig) -> list[EntryConfig]:
    """The benchmarks of a run, at least one; what an entry does not say is as at the top level. Raises ConfigError."""
    top = {field.name: getattr(cfg, field.name) for field in fields(BenchmarkConfig) if field.name != "benchmarks"}
    if (cfg.dataset_name is None) is not bool(cfg.benchmarks):
        raise ConfigError(
            f"dataset_name is {cfg.dataset_name!r} and benchmarks is {cfg.benchmarks}: give one of the two"
        )
    found = []
    for given in cfg.benchmarks or [cfg.dataset_name]:
        own = {"dataset_name": given} if isinstance(given, str) else given
        refuse_unknown(own, key_types(EntryConfig))
        found.append(build(EntryConfig, {**top, **own}))
    names = [name_of(entry) for entry in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"benchmarks: {', '.join(sorted(twice))} is there twice: give each entry a `name` of its own")
    return found


def name_of(entry: EntryConfig) -> str:
    kind, _, rest = str(entry.dataset_name).partition(":")
    return entry.name or (kind if kind in BENCHMARKS else f"gym-{rest}" if kind == "gym" else Path(kind).stem)


def ask(entry: EntryConfig, protocol: ProtocolConfig, *, tokenizer: Any | None) -> Asked:
    """Load one benchmark. `tokenizer`: the policy's; None where a server puts the prompt together.

    Raises DataError for rows that cannot be asked or judged, RewardError for rewards that do not fit them.
    """
    kind = str(entry.dataset_name).partition(":")[0]
    known = BENCHMARKS.get(kind)
    reward_funcs = entry.reward_funcs or [known.reward if known else "gym" if kind == "gym" else "accuracy"]
    rubric = Rubric.from_config(reward_funcs)
    loaded = load(entry, rubric)
    problems = [_instructed(problem, entry) for problem in loaded.problems[: entry.num_problems]]
    rubric.check_columns({name for problem in problems for name in problem.columns})
    if tokenizer is not None and opens_thinking(problems[0], tokenizer):
        problems = [replace(problem, think_opened=True) for problem in problems]
    return Asked(
        name=name_of(entry),
        problems=problems,
        rubric=rubric,
        protocol={
            "problems": len(problems),
            "problems_sha256": sha256_of([[problem.prompt, problem.answer] for problem in problems]),
            "prompt_template": entry.prompt_template,
            "system_prompt": entry.system_prompt,
            "instruction": entry.instruction,
            "template_sha256": sha256_of(template_text(entry, tokenizer)),
            "num_generations": samples_of(entry, protocol),
            "temperature": protocol.temperature,
            "top_p": protocol.top_p,
            "max_completion_length": protocol.max_completion_length,
            "stop_strings": protocol.stop_strings,
            "seed": protocol.seed,
            "reward_funcs": reward_funcs,
        },
        votes=known.votes if known else True,
        note=str(loaded.report),
    )


def samples_of(entry: EntryConfig, protocol: ProtocolConfig) -> int:
    """Completions of each problem of one benchmark."""
    known = BENCHMARKS.get(str(entry.dataset_name).partition(":")[0])
    return entry.num_generations or protocol.num_generations or (known.samples if known else SAMPLES)


def template_text(entry: EntryConfig, tokenizer: Any | None) -> str:
    """The template that turns a question into the prompt; of a server's own only that it is one is known."""
    if entry.prompt_template != "chat":
        return R1_ZERO_TEMPLATE if entry.prompt_template == "r1_zero" else "{question}"
    return "the server's" if tokenizer is None else str(tokenizer.chat_template)


def load(entry: EntryConfig, rubric: Rubric) -> LoadedProblems:
    """The problems of one benchmark, of which `rubric` can judge every one. Raises DataError."""
    name, split = str(entry.dataset_name), entry.dataset_test_split or "test"
    kind, _, rest = name.partition(":")
    if kind in BENCHMARKS and not rest:
        published = BENCHMARKS[kind]
        split, config = published.split, entry.dataset_config or published.config
        entry = replace(entry, dataset_name=f"{kind}:{published.hub}", dataset_config=config)
    elif Path(rest if kind in BENCHMARKS else name).suffix in FILE_TYPES and "{split}" not in name:
        split = "train"  # the one that a single file has
    return load_source(
        entry,
        split,
        allow_bad_rows=entry.allow_bad_rows,
        refuse=lambda problem: rubric.gold_problem(problem.columns),
    )


def _instructed(problem: Problem, entry: EntryConfig) -> Problem:
    if entry.instruction is None:
        return problem
    before, _, after = R1_ZERO_TEMPLATE.partition("{question}") if entry.prompt_template == "r1_zero" else ("", "", "")
    if isinstance(problem.prompt, str):
        asked = problem.prompt.removeprefix(before).removesuffix(after)
        return replace(problem, prompt=f"{before}{asked}\n\n{entry.instruction}{after}")
    *turns, last = problem.prompt
    return replace(problem, prompt=[*turns, {**last, "content": f"{last['content']}\n\n{entry.instruction}"}])


def sha256_of(value: Any) -> str:
    """64 hex digits over the value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
