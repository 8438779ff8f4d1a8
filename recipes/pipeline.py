"""The whole recipe as one chain of stages: each runs in a process of its own, and only if its inputs have changed.

accelerate launch -m recipes.pipeline --config recipes/configs/tiny_v3/pipeline.yaml --seeds 0,1,2
python -m recipes.pipeline --config recipes/configs/tiny_v3/pipeline.yaml --from dev1 --to dev2 --dry_run
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from grpo.config.coerce import build, dump_yaml, load_yaml, nearest
from grpo.config.parse import parse_flat
from grpo.errors import ConfigError
from grpo.files import write_json_atomic, write_text_atomic
from grpo.monitor.evaluation_page import shown
from grpo.setup import versions
from recipes.chaining.accounts import counts, sampled_tokens
from recipes.chaining.chain import Chain, Stage, in_order, kept_back, mapped
from recipes.chaining.foresight import benchmarks_of, check_tables, missing_files
from recipes.chaining.pipeline_page import cells, write_page
from recipes.chaining.stage_graph import ON_PAPER, graph
from recipes.chaining.tables import Claim, Column, evaluations, every_column, figures, judged
from recipes.command import exit_code, is_main, print_table

OF_THE_CHAIN = ("recipe", "config", "product", "launch")
# Where a recipe leaves what others take; elsewhere `final`.
PRODUCTS = {
    **{"pretrain_tiny": "", "tiny_manners": "", "evaluate": "summary.json"},
    **{"make_cold_start": "rows", "rejection_sampling": "rows", "gsm8k_traces": "", "teacher_traces": ""},
}
# What a recipe does not take: it cannot go on from the middle, or draws nothing.
LACKS = {"pretrain_tiny": "resume", "tiny_manners": "resume", "tiny_student": "resume", "gsm8k_traces": "seed"}
FLAGS = {"--from": "--first", "--to": "--last"}  # `from` cannot be the name of a field


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """A chain of stages. A stage is {recipe, config, any key of the recipe}; the value `$name` is what `name` made, and
    so is a path in the output_dir that its config has."""

    output_dir: str  # a folder for every seed and stage, summary.json and the page
    stages: dict[str, Any]  # name: {recipe: r1_zero, config: file.yaml, model_name_or_path: $base, ...}
    # name: {row: the stage whose model it is about, or {stage or model_name_or_path, keys of recipes.evaluate}, ...}
    tables: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)  # keys of recipes.evaluate, or its config, for every row
    # what the tables show: {column: {figure: pass@1, benchmarks: [gsm8k]}, ...}; empty: all that was measured
    columns: dict[str, Any] = field(default_factory=dict)
    # what should come out: {better: row, worse: row or null, column, margin}
    claims: list[dict[str, Any]] = field(default_factory=list)
    seeds: list[int] | str = field(default_factory=lambda: [0])  # the whole chain once for each; 0,1,2 or [0, 1, 2]
    launch: str | None = None  # accelerate's file for every stage, flags may follow; null: one process
    first: str | None = None  # --from: the stages before this one are taken as they are
    last: str | None = None  # --to: the stages after this one are left out
    dry_run: bool = False  # show what would run, and run nothing
    draw: str | None = None  # write a picture of the stages to this file (.svg), and run nothing

    @property
    def all_seeds(self) -> list[int]:
        try:
            return [int(seed) for seed in self.seeds.split(",")] if isinstance(self.seeds, str) else self.seeds
        except ValueError as error:
            raise ConfigError(f"seeds: got {self.seeds!r}; allowed: whole numbers, as in 0,1,2") from error


def parse(argv: Sequence[str]) -> PipelineConfig:
    return parse_flat([FLAGS.get(word, word) for word in argv], PipelineConfig)


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: pipeline(parse(given)))


def pipeline(cfg: PipelineConfig) -> int:
    """Run what has to be run, seed by seed. The exit code is that of the first stage that did not end well, else 0.

    Of several processes of a launcher only the main one does anything: stages have processes of their own.
    """
    if not is_main():
        return 0
    stages = in_order(
        wired([to_stage(name, given, cfg.launch) for name, given in (cfg.stages | evaluated(cfg)).items()])
    )
    chosen = between(stages, cfg.first, cfg.last)
    claims, columns = expected(cfg, stages)
    if cfg.draw is not None:
        write_text_atomic(Path(cfg.draw), graph(stages, rows_of(cfg), look=ON_PAPER))
        print(f"the stages: {cfg.draw}")
        return 0
    if said := kept_back(os.environ):
        print(f"{', '.join(said)}: not for the stages; what they are to be launched with is in the file of `launch`")
    look_for_files(chosen, dry_run=cfg.dry_run)
    chains = {seed: Chain(folder=Path(cfg.output_dir) / f"seed-{seed}", stages=stages) for seed in cfg.all_seeds}
    code = steps(chains, chosen, dry_run=cfg.dry_run)
    if code or cfg.dry_run:
        return code
    if old := not_current(chains):
        print(f"no tables are written, for these stages are not as the file says: {', '.join(old)}")
    else:
        summarise(cfg, chains, claims, columns)
    return 0


def expected(cfg: PipelineConfig, stages: Sequence[Stage]) -> tuple[list[Claim], dict[str, Column]]:
    """What the tables are to say, after every stage's recipe has read its keys: a slip in the last stage, or in what is
    claimed of it, is told before the first one runs. Raises ConfigError."""
    claims = [build(Claim, claim) for claim in cfg.claims]
    columns = {name: build(Column, column) for name, column in cfg.columns.items()}
    read = {stage.name: check(stage, extra_keys(stage, seed=0)) for stage in stages}
    rows = {row: benchmarks_of(read[evaluation_of(row)]) for table in cfg.tables.values() for row in table}
    check_tables(rows, columns, claims)
    return claims, columns


def look_for_files(stages: Sequence[Stage], *, dry_run: bool) -> None:
    """Raises ConfigError where a stage would look for a file in vain, days from now; a dry run only says so."""
    if missing := missing_files(stages):
        where = f"(looked in {Path.cwd()}): bring it, or correct the key"
        if not dry_run:
            raise ConfigError("\n".join(f"stages: {told} {where}" for told in missing))
        print(*(f"before a run, {told} {where}" for told in missing), sep="\n")


def not_current(chains: Mapping[int, Chain]) -> list[str]:
    """Every stage that would have to run; those that only wait for one aside."""
    standings = (
        (f"seed {seed}, {stage.name}", chain.standing(stage))
        for seed, chain in chains.items()
        for stage in chain.stages
        if not chain.waits(stage)
    )
    return [f"{where}: {standing}" for where, standing in standings if standing != "done"]


def evaluated(cfg: PipelineConfig) -> dict[str, Any]:
    """A stage that evaluates the model of every row of the tables."""
    found = {}
    for row, given in (item for rows in cfg.tables.values() for item in rows.items()):
        own = {"stage": given} if isinstance(given, str) else dict(given)
        if "stage" in own:
            own["model_name_or_path"] = f"${own.pop('stage')}"
        found[evaluation_of(row)] = {"recipe": "evaluate", **cfg.evaluation, **own}
    return found


def rows_of(cfg: PipelineConfig) -> dict[str, str]:
    """The stage, or the model from outside, behind every row of the tables -> the row."""
    given = ((row, model) for rows in cfg.tables.values() for row, model in rows.items())
    return {
        model if isinstance(model, str) else model.get("stage") or model["model_name_or_path"]: row
        for row, model in given
    }


def evaluation_of(row: str) -> str:
    """The name of the stage that evaluates this row."""
    return f"evaluate_{re.sub(r'[^a-z0-9]+', '_', row.lower())}"


def summarise(
    cfg: PipelineConfig, chains: Mapping[int, Chain], claims: Sequence[Claim], columns: Mapping[str, Column]
) -> None:
    """summary.json, the page, and the tables for a person."""
    models = {
        row: evaluations([chain.folder / evaluation_of(row) for chain in chains.values()])
        for rows in cfg.tables.values()
        for row in rows
    }
    columns = columns or {name: found for model in models.values() for name, found in every_column(model).items()}
    summary = {name: {row: figures(models[row], columns) for row in rows} for name, rows in cfg.tables.items()}
    summary |= {
        "claims": [judged(claim, models, columns) for claim in claims],
        "seconds": {f"seed {seed}": chain.seconds() for seed, chain in chains.items()},
        "sampled_tokens": {f"seed {seed}": sampled_tokens(chain) for seed, chain in chains.items()},
        "counts": {f"seed {seed}": counts(chain) for seed, chain in chains.items()},
        "versions": versions(),
    }
    folder = Path(cfg.output_dir)
    write_json_atomic(folder / "summary.json", summary)
    for name in cfg.tables:
        print(f"\n{name}")
        print_table([list(line) for line in zip(*cells(summary[name]), strict=True)])
    for claim in summary["claims"]:
        came = "came out" if claim["holds"] else "DID NOT COME OUT"
        print(f"{claim['text']}: {came}, {shown(claim['difference'])}")
    print(f"page: {write_page(folder, list(chains.values()), summary, rows_of(cfg))}")


def steps(chains: Mapping[int, Chain], chosen: Sequence[Stage], *, dry_run: bool) -> int:
    """The chosen stages, seed by seed, up to the first that does not end well; its exit code."""
    for seed, chain in chains.items():
        for number, stage in enumerate(chosen, start=1):
            where = f"seed {seed}, stage {number} of {len(chosen)}"
            if code := step(chain, stage, extra_keys(stage, seed), where, dry_run=dry_run):
                return code
    return 0


def step(chain: Chain, stage: Stage, extra: Mapping[str, Any], where: str, *, dry_run: bool) -> int:
    """One stage, unless it is done; says what it takes from which, and how it is run."""
    standing = chain.standing(stage)
    inputs = [*(Path(model).name for model in stage.given), *stage.needs]
    takes = f" <- {', '.join(inputs)}" if inputs else ""
    print(f"=== {where}: {stage.name} ({stage.recipe}){takes}: {standing}", flush=True)
    if dry_run or standing == "done":
        return 0
    if chain.waits(stage):
        raise ConfigError(f"{stage.name} {standing}: run these first, without --from, or with an earlier one")
    code = chain.run(stage, extra)
    if code:
        print(f"{stage.name} ended with exit code {code}; the same command goes on from there", file=sys.stderr)
    return code


def check(stage: Stage, extra: Mapping[str, Any]) -> Any:
    """What the stage's recipe reads in its keys. Raises ConfigError."""
    try:
        recipe = import_module(f"recipes.{stage.recipe}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"stages: {stage.name}: no recipe {stage.recipe!r} ({error})") from error
    if not hasattr(recipe, "parse"):
        raise ConfigError(f"stages: {stage.name}: {stage.recipe} is a command and no stage; run it by itself")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{stage.name}.yaml"
        path.write_text(dump_yaml({**stage.keys, **extra, "output_dir": stage.name}), encoding="utf-8")
        try:
            return recipe.parse(["--config", str(path)])
        except ConfigError as error:
            raise ConfigError(f"stages: {stage.name}: {error}") from error


def extra_keys(stage: Stage, seed: int) -> dict[str, Any]:
    keys = {"seed": seed, "resume": "auto"}
    return {key: value for key, value in keys.items() if key != LACKS.get(stage.recipe)}


def to_stage(name: str, given: Any, launch: str | None) -> Stage:
    """What the YAML says of a stage, its own file read beneath it. Raises ConfigError."""
    if not isinstance(given, Mapping) or "recipe" not in given:
        raise ConfigError(f"stages: {name} is {given!r}; expected {{recipe: <module of recipes/>, key: value, ...}}")
    keys = {key: value for key, value in given.items() if key not in OF_THE_CHAIN}
    if "config" in given:
        try:
            keys = (load_yaml(Path(given["config"]).read_text(encoding="utf-8")) or {}) | keys
        except OSError as error:
            raise ConfigError(f"stages: {name}: config {given['config']}: {error.strerror}") from error
    if launch := given.get("launch", launch):
        check_launch(f"stages: {name}: launch", launch)
    product = given.get("product", PRODUCTS.get(given["recipe"], "final"))
    return Stage(name=name, recipe=given["recipe"], keys=keys, product=product, launch=launch)


def check_launch(where: str, launch: str) -> None:
    """Raises ConfigError unless the first of its words is a file."""
    try:
        file = next(iter(shlex.split(launch)), "")
    except ValueError as error:
        raise ConfigError(f"{where}: {launch!r} cannot be read: {error}") from error
    if not Path(file).is_file():
        raise ConfigError(
            f"{where}: {launch!r}: no such file (looked in {Path.cwd()}); expected a file of accelerate's, with flags "
            "behind it if any, or null for one process"
        )


def wired(stages: Sequence[Stage]) -> list[Stage]:
    """A path in the `output_dir` that a stage has when it runs alone means that stage's output here: files that work
    one after another by hand work in a chain as they are."""
    homes = {str(stage.keys["output_dir"]): stage.name for stage in stages if "output_dir" in stage.keys}

    def reference(text: str) -> str:
        found = next((home for home in homes if text == home or text.startswith(f"{home}/")), None)
        return text if found is None else f"${homes[found]}/{text.removeprefix(found).lstrip('/')}"

    others = [{key: value for key, value in stage.keys.items() if key != "output_dir"} for stage in stages]
    return [replace(stage, keys=mapped(keys, reference)) for stage, keys in zip(stages, others, strict=True)]


def between(stages: Sequence[Stage], first: str | None, last: str | None) -> list[Stage]:
    """The stages that --from and --to leave. Raises ConfigError for a name that is none of them."""
    names = [stage.name for stage in stages]
    for flag, name in (("--from", first), ("--to", last)):
        if name is not None and name not in names:
            raise ConfigError(f"{flag} {name}: no such stage.{nearest(name, names)} In order: {', '.join(names)}")
    start = names.index(first) if first else 0
    return list(stages[start : names.index(last) + 1 if last else None])


if __name__ == "__main__":
    sys.exit(main())
