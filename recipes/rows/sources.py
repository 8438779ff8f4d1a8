"""Where a sampling stage gets its scored groups: problems that a model is asked (others: recipes/rows/traces.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from data.curate import NgramIndex, contaminated
from data.fingerprint import fingerprint
from data.problem import Problem
from grpo.config import DataConfig, RunConfig
from grpo.config.checks import check
from grpo.config.coerce import build, key_types
from grpo.config.parse import to_flat
from grpo.distributed import Dist
from grpo.doctor import refuse_sick_rewards
from grpo.errors import ConfigError, DataError
from grpo.sampled import sampled
from grpo.setup import build_policy, load_data, load_sources
from grpo.signals import StopRequest
from grpo.types import ScoredGroup
from recipes.rows.rows_folder import RowsFolder
from rewards.doctor import examine
from rewards.rubric import Rubric

ROW_LINEAGE = ("model_name_or_path", "model_sha256", "temperature", "top_p", "seed")
SHOWN = 5  # contaminated problems that are named


class Source(Protocol):
    """Where scored groups come from. total: how many. fingerprint: of their problems. unjudged: samples that no reward
    judged count as good."""

    total: int
    fingerprint: str
    conversational: bool
    unjudged: bool
    notes: Sequence[str]

    def lineage(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """What every row says of where it came from; `identity`: the folder's."""
        ...

    def groups(self, folder: RowsFolder, dist: Dist, stop: StopRequest) -> Iterator[list[ScoredGroup]]:
        """Those behind the first `folder.done`, a shard's at a time (collective; `folder` is the main process's)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problems:
    """A source: problems that the model of `run` is asked."""

    run: RunConfig
    rubric: Rubric
    problems: Sequence[Problem]
    notes: Sequence[str]
    unjudged = False

    @classmethod
    def of(cls, run: RunConfig, index: NgramIndex, tokenizer: Any, rubric: Rubric, dist: Dist) -> Problems:
        """The training problems that share nothing with the index. Raises DataError where none is left, RewardError
        where the rewards cannot judge them."""
        data = load_data(run, tokenizer, rubric)
        notes = list(data.notes)
        problems = decontaminated(data.train, index, notes)
        if run.rewards.check_rewards:
            refuse_sick_rewards(dist.from_main(examine(rubric, problems, seconds=2.0) if dist.is_main else None))
        return cls(run=run, rubric=rubric, problems=problems, notes=[*notes, plan_line(run, len(problems))])

    @property
    def total(self) -> int:
        return len(self.problems)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.problems)

    @property
    def conversational(self) -> bool:
        return not isinstance(self.problems[0].prompt, str)

    def lineage(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        return {key: identity[key] for key in ROW_LINEAGE}

    def groups(self, folder: RowsFolder, dist: Dist, stop: StopRequest) -> Iterator[list[ScoredGroup]]:
        done = dist.from_main(folder.done)
        if done < self.total:
            yield from sampled(
                build_policy(self.run, dist, None),
                self.problems,
                self.rubric,
                sampling=self.run.sampling,
                seed=self.run.output.seed,
                dist=dist,
                chunk=folder.cfg.problems_per_shard,
                skip=done,
                stop=stop,
            )


def plan_line(run: RunConfig, problems: int) -> str:
    samples, longest = problems * run.sampling.num_generations, run.sampling.max_completion_length
    return (
        f"{problems:,} problems x {run.sampling.num_generations} samples = {samples:,}, of at most {longest:,} tokens: "
        f"up to {samples * longest:,} tokens"
    )


def as_run(cfg: Any) -> RunConfig:
    """The keys of a stage as those of a run that never trains, checked. Raises ConfigError."""
    known = key_types(RunConfig)
    run = build(RunConfig, {key: value for key, value in to_flat(cfg).items() if key in known})
    check(run)
    if cfg.rows.problems_per_shard < 1:
        raise ConfigError(f"problems_per_shard: got {cfg.rows.problems_per_shard}; allowed: at least 1")
    return run


def decontaminated(problems: Sequence[Problem], index: NgramIndex, notes: list[str]) -> list[Problem]:
    """Without those whose question shares ten words in a row with the index. Raises DataError if none is left."""
    found = [(problem, contaminated(problem.question, index)) for problem in problems]
    dirty = [f"  {problem.id} has {overlap.ngram!r} of {overlap.item}" for problem, overlap in found if overlap]
    if dirty:
        notes += [f"{len(dirty)} of {len(problems)} problems share words with a benchmark: left out", *dirty[:SHOWN]]
    clean = [problem for problem, overlap in found if not overlap]
    if not clean:
        raise DataError("\n".join(["no problem is left to sample:", *notes]))
    return clean


def benchmark_index(benchmarks: Sequence[Mapping[str, Any]], tokenizer: Any, dist: Dist) -> NgramIndex:
    """The questions of the benchmarks' test splits. Raises DataError where one cannot be read."""
    notes: list[str] = []
    if not benchmarks:
        return NgramIndex(())
    tests = load_sources(DataConfig(dataset_mixture=list(benchmarks)), "test", tokenizer, Rubric(()), notes)
    if dist.is_main:
        print(*notes, sep="\n", flush=True)
    return NgramIndex((problem.id, problem.question) for source in tests for problem in source)
