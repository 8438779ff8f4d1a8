"""From problems to the rows of a training set: sample, judge, choose, write. Rejection sampling and the making of a
cold start are both this, and go on after a kill behind the last shard, to the same rows.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from data.conversations import Conversation
from data.templates import Template
from grpo.config import DataConfig
from grpo.config.coerce import nearest
from grpo.config.parse import to_flat
from grpo.distributed import Dist
from grpo.errors import ConfigError, DataError
from grpo.files import write_json_atomic
from grpo.monitor.counting import counted
from grpo.signals import Interrupted, StopRequest, stop_requests
from recipes.lineage import fingerprint_of, problem_inputs, write_lineage
from recipes.rows.choose import KeepConfig, Sample, choose
from recipes.rows.mix_rows import Others, in_template, mix_in
from recipes.rows.rows_folder import RowsConfig, RowsFolder
from recipes.rows.sources import Source
from rewards.rubric import Rubric

REPORT = "report.json"
# A run without a row ends behind so many shards and this share of its problems, whichever comes last.
FRUITLESS_SHARDS, FRUITLESS_SHARE = 4, 0.1
# Place, speed and access: other values make the same rows.
FREE_KEYS = {
    "output_dir", "resume", "sampler", "rows_per_forward", "max_tokens_in_flight", "rewrite_url", "rewrite_timeout",
    "rewrite_concurrency", "rewrite_api_key_env",
}  # fmt: skip


class StageConfig(Protocol):
    """What the config of every such stage holds, besides ModelConfig and others whose keys RunConfig knows."""

    data: DataConfig
    keep: KeepConfig
    rows: RowsConfig


class Polish(Protocol):
    """Chosen samples -> those that are left, each with the text that was sampled."""

    def __call__(self, samples: Sequence[Sample], folder: RowsFolder) -> list[tuple[Sample, str]]: ...


def make_rows(
    cfg: StageConfig,
    source: Source,
    dist: Dist,
    *,
    stage: str,
    polish: Polish | None = None,
    others: Others | None = None,
) -> int:
    """Fill `output_dir`; 0, or 143 / 130 after SIGTERM / SIGINT, when the next run goes on behind the last shard.

    Raises ConfigError and CheckpointError where the folder holds rows that cannot be gone on with, DataError where
    nothing was good enough to become a row.
    """
    began = time.monotonic()
    template = cfg.rows.rows_template
    conversational = source.conversational if template is None else template == "chat"
    identity = dist.from_main(identity_of(cfg, source.fingerprint) if dist.is_main else None)
    folder = RowsFolder(cfg.rows, identity, conversational=conversational)
    with stop_requests(dist) as stop, dist.entered_by_main(folder.opened()):
        if dist.is_main:
            print(*source.notes, sep="\n", flush=True)
        try:
            write_groups(cfg.keep, source, folder, dist, stop, stage=stage, polish=polish)
        except Interrupted:
            return 128 + stop.signum
        if dist.is_main:
            mix_in(folder, others)
            finish(cfg, folder, stage, time.monotonic() - began)
    return 0


def write_groups(
    keep: KeepConfig,
    source: Source,
    folder: RowsFolder,
    dist: Dist,
    stop: StopRequest,
    *,
    stage: str,
    polish: Polish | None,
) -> None:
    """A shard for every part of the source; shows how far it is and how long it may take. Every process goes through
    the source, the main one chooses and writes. Raises Interrupted, and DataError where so much has given no row
    that the rest would give few."""
    lineage = {"stage": stage, **source.lineage(folder.identity)}
    bar = counted(total=source.total, initial=folder.done, desc="problems", unit="problems", disable=not dist.is_main)
    with bar:
        for part in source.groups(folder, dist, stop):
            if not dist.is_main:
                continue
            chosen = [
                sample
                for group in part
                for sample in choose(group, keep, folder.seen, folder.tally, unjudged=source.unjudged)
            ]
            polished = polish(chosen, folder) if polish else [(sample, sample.text) for sample in chosen]
            rows = [to_row(sample, original, lineage, folder.cfg.rows_template) for sample, original in polished]
            folder.add(rows, problems=len(part))
            bar.set_description_str(f"{folder.tally.total.rows:,} rows; problems", refresh=False)
            bar.update(len(part))
            if folder.done >= max(FRUITLESS_SHARDS * folder.cfg.problems_per_shard, FRUITLESS_SHARE * source.total):
                refuse_nothing(folder)


def to_row(sample: Sample, original: str, lineage: Mapping[str, Any], template: Template | None) -> Conversation:
    """`original`: what was sampled; the sample's text may be a rewriting of it. `template`: how the prompt is shown;
    None: as it was asked."""
    problem, rewritten = sample.problem, sample.text != original
    row = Conversation(
        id=f"{problem.id}#{sample.sibling}",
        prompt=problem.prompt,
        completion=sample.text,
        task=problem.task,
        source=problem.source,
        lineage={**lineage, "rewritten": True} if rewritten else lineage,
        columns={
            "answer": problem.answer,
            "tokens": len(sample.rollout.completion_ids),
            "reward": None if math.isnan(sample.reward) else sample.reward,
            "pass_rate": sample.pass_rate,
            "sampled": original if rewritten else None,
        },
    )
    if template is not None:
        return in_template(row, template)
    opened = isinstance(problem.prompt, str) and problem.think_opened
    return replace(row, completion=row.completion.lstrip().removeprefix("<think>")) if opened else row


def check_keep(cfg: KeepConfig, rubric: Rubric) -> None:
    """Raises ConfigError for a rule about a reward that is not asked, and for bounds that let nothing pass."""
    for name in cfg.keep_at_least:
        if name not in rubric.names:
            raise ConfigError(
                f"keep_at_least: {name!r} is not among reward_funcs ({', '.join(rubric.names)})."
                f"{nearest(name, rubric.names)} To measure without paying, name it there with `weight: 0`"
            )
    if cfg.max_per_problem is not None and cfg.max_per_problem < 1:
        raise ConfigError(f"max_per_problem: got {cfg.max_per_problem}; allowed: at least 1, or null for all")
    if not 0 <= cfg.min_pass_rate <= cfg.max_pass_rate <= 1:
        raise ConfigError(
            f"min_pass_rate, max_pass_rate: got {cfg.min_pass_rate} and {cfg.max_pass_rate}; allowed: from 0 to 1, the "
            "first not above the second"
        )


def identity_of(cfg: Any, problems: str) -> dict[str, Any]:
    """Everything that decides about the rows, as JSON gives it back."""
    keys = to_flat(cfg)
    flat = {key: value for key, value in keys.items() if key not in FREE_KEYS}
    inputs = {"model_sha256": flat["model_name_or_path"], "mix_sha256": flat.get("mix_dataset")}
    contents = {key: fingerprint_of(name) if name and Path(name).exists() else None for key, name in inputs.items()}
    flat |= {"problems": problems, "rewritten": keys.get("rewrite_url") is not None, **contents}
    return json.loads(json.dumps(flat, default=str))


def finish(cfg: Any, folder: RowsFolder, stage: str, seconds: float) -> None:
    """Report and lineage, on disk and for a person. Raises DataError where no row is left."""
    refuse_nothing(folder)
    flat, report = to_flat(cfg), report_of(folder)
    fingerprints = {"problems_sha256": folder.identity["problems"]}  # of a gym task too, which is no file
    others = {"mixed in": flat["mix_dataset"]} if flat.get("mix_dataset") else {}
    write_lineage(
        folder.path,
        stage=stage,
        inputs={"model": flat["model_name_or_path"], **problem_inputs(cfg.data), **others},
        config=cfg,
        seconds=seconds,
        counts=report | fingerprints,
    )
    print("", *folder.tally.lines(), "", sep="\n")
    print(f"{folder.tally.total.rows:,} rows: {folder.rows_path}   report: {folder.path / REPORT}", flush=True)


def report_of(folder: RowsFolder) -> dict[str, Any]:
    """What is known of the samples so far, written into the folder."""
    report = {"tasks": folder.tally.as_json(), "total": folder.tally.total.as_json(), "mixed": folder.mixed}
    write_json_atomic(folder.path / REPORT, report)
    return report


def refuse_nothing(folder: RowsFolder) -> None:
    """Raises DataError where no sample became a row."""
    if folder.tally.total.rows:
        return
    report_of(folder)
    lines = "\n".join(folder.tally.lines())
    raise DataError(
        f"no sample became a row, of {folder.done:,} problems. What became of them (also in {folder.path / REPORT}):\n"
        f"{lines}\nLoosen keep_at_least and the other rules, raise max_completion_length, or sample a better model"
    )
