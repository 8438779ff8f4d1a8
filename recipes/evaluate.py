"""Evaluation by DeepSeek-R1's protocol: k samples a problem at temperature 0.6 and top-p 0.95, judged by the verifier
that training pays with (arXiv 2501.12948, section 3; its appendix D).

    accelerate launch -m recipes.evaluate --config recipes/configs/tiny_v3/evaluate.yaml

The model is a checkpoint, or a name behind an OpenAI-compatible server (`--base_url`); `--samples` grades completions
that are there already. Every sample is stored as it comes, and a run that was killed goes on behind them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo.checkpoint.runlock import RunLock
from grpo.config import ModelConfig
from grpo.config.parse import parse_flat, to_flat
from grpo.distributed import Dist, start
from grpo.errors import CheckpointError, ConfigError
from grpo.files import write_json_atomic
from grpo.monitor.counting import count_loading, counted
from grpo.monitor.evaluation_page import figures_table, write_page
from grpo.monitor.samples import Result, SampleStore, Tally, write_results
from grpo.policy.load import load_tokenizer
from grpo.setup import git_commit, versions
from grpo.signals import Interrupted, stop_requests
from recipes.asking.answering import Answering, Checkpoint, SamplesConfig, Server, ServerConfig, given_samples
from recipes.asking.asked import Asked, BenchmarkConfig, ProtocolConfig, ask, entries
from recipes.command import exit_code, print_table
from recipes.lineage import fingerprint_of, write_lineage

IDENTITY_FILE = "protocol.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The folder of the samples and the figures."""

    output_dir: str  # the folder
    # auto: behind the stored samples if there are any; never: refuse a used folder; must: refuse a fresh one
    resume: Literal["auto", "never", "must"] = "auto"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Ask a model benchmarks, judge its answers, say how sure the figures are."""

    model: ModelConfig
    data: BenchmarkConfig
    protocol: ProtocolConfig
    server: ServerConfig
    given: SamplesConfig
    output: EvaluationConfig


class EvaluationFolder:
    """The samples of one evaluation, those that are there already and those that come."""

    def __init__(self, cfg: EvaluationConfig, identity: dict[str, Any]) -> None:
        self.cfg, self.identity, self.path = cfg, json.loads(json.dumps(identity)), Path(cfg.output_dir)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Locked for this process. Raises ConfigError and CheckpointError where `resume` or another evaluation's
        samples forbid to go on."""
        with RunLock(self.path):
            self._go_on()
            yield

    def _go_on(self) -> None:
        file = self.path / IDENTITY_FILE
        used = file.is_file()
        if used and self.cfg.resume == "never":
            raise ConfigError(f"{self.path} holds an evaluation and `resume` is never: give another output_dir")
        if not used and self.cfg.resume == "must":
            raise CheckpointError(f"{self.path} holds no evaluation and `resume` is must: correct output_dir")
        if not used:
            if foreign := [path.name for path in self.path.iterdir() if path.name != ".lock"]:
                raise ConfigError(f"{self.path} holds {foreign[0]} but no evaluation: give another output_dir")
            write_json_atomic(file, self.identity)
        elif differing := differences(json.loads(file.read_text(encoding="utf-8")), self.identity):
            raise ConfigError(
                f"{self.path} holds samples of another evaluation, by {'; '.join(differing)}: give another output_dir"
            )
        self.store = SampleStore(self.path)


def parse(argv: Sequence[str]) -> EvaluateConfig:
    return parse_flat(argv, EvaluateConfig)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: evaluate(parse(given)))


def evaluate(cfg: EvaluateConfig) -> int:
    """Everything that can be refused is refused before the first sample. Returns 0, or 143 / 130 after SIGTERM /
    SIGINT, when the next run goes on behind what is stored.

    Raises ConfigError, DataError, RewardError, EndpointError, CheckpointError.
    """
    began = time.monotonic()
    dist, _ = start(log_with=[], project_dir=None)
    count_loading(is_main=dist.is_main)
    asked, answering, verdicts = prepared(cfg, dist)
    notes = [one.note for one in asked] + answering.ready(asked)
    folder = EvaluationFolder(cfg.output, identity_of(cfg, asked))
    with stop_requests(dist) as stop, dist.entered_by_main(folder.opened()):
        if dist.is_main:
            print(*notes, sep="\n", flush=True)
        done = dist.from_main(dict(folder.store.done) if dist.is_main else None)
        done = {one.name: done.get(one.name, set()) for one in asked}
        try:
            total, there = sum(len(one.problems) for one in asked), sum(map(len, done.values()))
            with counted(total=total, initial=there, desc="asked", unit="problems", disable=not dist.is_main) as bar:
                for rows in answering.rows(asked, done, dist, stop):
                    if dist.is_main:
                        folder.store.write(rows)
                        bar.update(sum(row["sibling"] == 0 for row in rows))
        except Interrupted:
            return 128 + stop.signum
        if dist.is_main:
            finish(cfg, folder, asked, verdicts, time.monotonic() - began)
    return 0


def prepared(cfg: EvaluateConfig, dist: Dist) -> tuple[list[Asked], Answering, list[list[bool]]]:
    """What is asked, who answers, and, for completions from a file, the file's own verdicts."""
    given = cfg.given
    if given.samples is not None:
        asked, answering, verdicts = given_samples(given, cfg.protocol, cfg.data.reward_funcs or ["accuracy"])
        return [asked], answering, verdicts
    if cfg.server.base_url is None:
        tokenizer = load_tokenizer(cfg.model)
        asked = [ask(entry, cfg.protocol, tokenizer=tokenizer) for entry in entries(cfg.data)]
        return asked, Checkpoint.of(cfg.model, cfg.protocol, tokenizer), []
    if dist.world > 1:
        raise ConfigError(f"a server is asked by one process, and {dist.world} were started: leave the launcher out")
    asked = [ask(entry, cfg.protocol, tokenizer=None) for entry in entries(cfg.data)]
    return asked, Server.of(cfg.model, cfg.server, cfg.protocol), []


def identity_of(cfg: EvaluateConfig, asked: Sequence[Asked]) -> dict[str, Any]:
    """What must be the same for stored samples to be gone on with."""
    source = cfg.given.samples or cfg.model.model_name_or_path
    return {
        "given": to_flat(cfg.given),
        "model": cfg.model.model_name_or_path,
        "content_sha256": fingerprint_of(source) if Path(source).exists() else None,
        "benchmarks": {one.name: dict(one.protocol) for one in asked},
    }


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """`name: value there, value here` for every leaf of two JSON values that differs."""
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [] if there == here else [f"{name} ({there} there, {here} here)"]
    keys = dict.fromkeys([*there, *here])
    return [
        told for key in keys for told in differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    ]


def finish(
    cfg: EvaluateConfig, folder: EvaluationFolder, asked: Sequence[Asked], own: list[list[bool]], seconds: float
) -> None:
    """Figures from the stored samples: results.jsonl, summary.json, evaluation.html, lineage, and a table."""
    tallies = {one.name: Tally(votes=one.votes) for one in asked}
    total = sum(len(one.problems) for one in asked)
    for rows in counted(folder.store.problems(), total=total, desc="figures", unit="problems", disable=False):
        tallies[rows[0]["benchmark"]].add(rows)
    benchmarks = {one.name: {**tallies[one.name].summary(), "protocol": dict(one.protocol)} for one in asked}
    if any(own):
        (tally,) = tallies.values()
        benchmarks[asked[0].name]["own_verdicts"] = agreement(tally.results, own)
    summary = {
        **{key: folder.identity[key] for key in ("model", "content_sha256")},
        "benchmarks": benchmarks,
        "seconds": round(seconds, 1),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_results(folder.path, [result for tally in tallies.values() for result in tally.results])
    write_json_atomic(folder.path / SUMMARY_FILE, summary)
    page = write_page(folder.path, summary, tallies)
    inputs = {"model": cfg.model.model_name_or_path, **{one.name: one.problems[0].source for one in asked}}
    write_lineage(
        folder.path,
        stage="evaluate",
        inputs={**inputs, "samples": cfg.given.samples} if cfg.given.samples else inputs,
        config=cfg,
        seconds=seconds,
        counts={name: one["problems"] for name, one in benchmarks.items()},
    )
    print_table(figures_table(benchmarks))
    for name, one in benchmarks.items():
        if "own_verdicts" in one:
            print(f"{name}: {one['own_verdicts']['agree']} of {one['own_verdicts']['of']} verdicts are the file's own")
    print(f"{seconds:.0f} s. Page: {page}   Samples: grpo show {folder.path}", flush=True)


def agreement(results: Sequence[Result], own: Sequence[Sequence[bool]]) -> dict[str, int]:
    """On how many completions our verdict is the file's."""
    pairs = [
        (bool(ours), theirs)
        for result in results
        for ours, theirs in zip(result.correct, own[result.problem], strict=True)
    ]
    return {"agree": sum(ours == theirs for ours, theirs in pairs), "of": len(pairs)}


if __name__ == "__main__":
    sys.exit(main())
