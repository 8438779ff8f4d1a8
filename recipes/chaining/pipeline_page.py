"""`pipeline.html`: what fed what, the curves of every stage that has some, and the tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from grpo.files import write_text_atomic
from grpo.monitor import markup
from grpo.monitor.charts import COLOURS, Chart, Curve, points
from grpo.monitor.evaluation_page import shown
from grpo.monitor.markup import Cell
from grpo.monitor.metrics import read_metrics
from grpo.monitor.report import REPORT_FILE
from recipes.chaining.chain import Chain
from recipes.chaining.stage_graph import graph
from recipes.lineage import LINEAGE

PAGE_FILE = "pipeline.html"
CURVES = (
    Chart(title="Reward", lines={"reward": "reward"}),
    Chart(title="Held-out accuracy", lines={"eval/pass@1": "pass@1"}, share=True),
    Chart(title="Completion length", lines={"completions/mean_length": "tokens"}),
    Chart(title="Loss of supervised rows", lines={"nll": "nll"}),
)


def write_page(folder: Path, chains: Sequence[Chain], summary: Mapping[str, Any], rows: Mapping[str, str]) -> Path:
    """Self-contained; returns its path. The curves are the first seed's; `rows` as in `graph`."""
    tables = "".join(
        f"<h3>{escape(name.replace('_', ' '))}</h3>{markup.table(cells(summary[name]))}"
        for name in summary
        if name.startswith("table")
    )
    sections = (
        ("Stages", f"<figure>{graph(chains[0].stages, rows)}</figure>"),
        ("Tables: means over seeds, with 95 % intervals over problems", tables),
        ("What was expected", markup.table(claim_rows(summary["claims"]))),
        ("Curves of the first seed", f'<div class="grid">{"".join(curves(chains[0]))}</div>'),
        ("Seconds", markup.table(second_rows(summary["seconds"]))),
        ("What the stages of the first seed counted", markup.table(count_rows(chains[0]))),
        ("Reports of the stages", reports(folder, chains)),
    )
    facts = f"seeds: {len(chains)}, stages: {len(chains[0].stages)}"
    path = folder / PAGE_FILE
    write_text_atomic(path, markup.page("The whole recipe", facts, sections))
    return path


def cells(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[Cell]]:
    """Heading and rows of one table of summary.json."""
    columns = dict.fromkeys(column for row in table.values() for column in row)
    return [["", *columns], *([name, *(shown(row.get(column)) for column in columns)] for name, row in table.items())]


def claim_rows(claims: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = [
        [claim["text"], shown(claim["difference"]), "yes" if claim["holds"] else "no"] for claim in claims
    ]
    return [["", "measured", "came out"], *rows] if rows else []


def second_rows(seconds: Mapping[str, Mapping[str, float]]) -> list[list[Cell]]:
    names = dict.fromkeys(name for of_seed in seconds.values() for name in of_seed)
    rows: list[list[Cell]] = [[name, *(of_seed.get(name) for of_seed in seconds.values())] for name in names]
    return [["stage", *seconds], *rows]


def count_rows(chain: Chain) -> list[list[Cell]]:
    """What every stage's lineage says of rows, pairs, tokens and figures; tasks are in its own report."""
    rows: list[list[Cell]] = [
        [stage.name, name, value]
        for stage in chain.stages
        if (path := chain.output(stage) / LINEAGE).exists() and stage.recipe != "evaluate"
        for name, value in numbers(json.loads(path.read_text(encoding="utf-8"))["counts"])
    ]
    return [["stage", "", ""], *rows] if rows else []


def numbers(counts: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested counts, with the way to it."""
    for key, value in counts.items():
        if isinstance(value, Mapping) and key != "tasks":
            yield from numbers(value, f"{name}{key} ")
        elif isinstance(value, int | float):
            yield f"{name}{key}", value


def reports(folder: Path, chains: Sequence[Chain]) -> str:
    """Links to the pages that stages wrote."""
    pages = [chain.output(stage) / REPORT_FILE for chain in chains for stage in chain.stages]
    names = [page.relative_to(folder).as_posix() for page in pages if page.exists()]
    return " ".join(f'<a href="{escape(name)}">{escape(name.removesuffix(f"/{REPORT_FILE}"))}</a>' for name in names)


def curves(chain: Chain) -> list[str]:
    """A figure for each chart: one line a stage."""
    metrics = {stage.name: read_metrics(chain.output(stage)) for stage in chain.stages}
    drawn = []
    for chart in (*CURVES, *charts_of_rewards(metrics)):
        ((metric, _),) = chart.lines.items()
        lines = {name: points(of_stage, metric) for name, of_stage in metrics.items()}
        found = [
            Curve(label=name, colour=COLOURS[number % len(COLOURS)], steps=steps, values=values)
            for number, (name, (steps, values)) in enumerate(item for item in lines.items() if item[1][1])
        ]
        if found:
            drawn.append(markup.figure(chart, found))
    return drawn


def charts_of_rewards(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """One for each reward that some stage had: where two part that should agree, one of them is being fooled."""
    found = (name for lines in metrics.values() for line in lines for name in line)
    means = dict.fromkeys(name for name in found if name.startswith("rewards/") and name.endswith("/mean"))
    return [Chart(title=f"Reward {name.split('/')[1]}", lines={name: "mean"}) for name in means]
