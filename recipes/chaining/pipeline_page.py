"""`pipeline.html`: what fed what, the curves of every stage that has some, and the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from grpo.files import write_text_atomic
from grpo.monitor import markup
from grpo.monitor.charts import COLOURS, Chart, Curve, moving_average, points
from grpo.monitor.evaluation_page import shown
from grpo.monitor.markup import Cell
from grpo.monitor.metrics import read_metrics
from grpo.monitor.report import REPORT_FILE
from recipes.chaining.chain import Chain, Stage
from recipes.chaining.stage_graph import graph

PAGE_FILE = "pipeline.html"
PLACES = 25  # of a curve of one reward against another
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
        ("Seconds", markup.table(stage_rows(summary["seconds"]))),
        ("Tokens sampled in reinforcement", markup.table(stage_rows(summary["sampled_tokens"]))),
        ("What the stages of the first seed counted", markup.table(count_rows(next(iter(summary["counts"].values()))))),
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


def stage_rows(by_seed: Mapping[str, Mapping[str, float]]) -> list[list[Cell]]:
    """A line for each stage, a column for each seed, and the sum."""
    names = dict.fromkeys(name for found in by_seed.values() for name in found)
    rows: list[list[Cell]] = [[name, *(found.get(name) for found in by_seed.values())] for name in names]
    return [["stage", *by_seed], *rows, ["all", *(sum(found.values()) for found in by_seed.values())]]


def count_rows(counts: Mapping[str, Mapping[str, float]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = [[stage, name, value] for stage, found in counts.items() for name, value in found.items()]
    return [["stage", "", ""], *rows] if rows else []


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
    return [*drawn, *(fooled(stage, name, metrics[stage.name]) for stage in chain.stages for name in unpaid(stage))]


def charts_of_rewards(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """One for each reward that some stage had: where two part that should agree, one of them is being fooled."""
    found = (name for lines in metrics.values() for line in lines for name in line)
    means = dict.fromkeys(name for name in found if name.startswith("rewards/") and name.endswith("/mean"))
    return [Chart(title=f"Reward {name.split('/')[1]}", lines={name: "mean"}) for name in means]


def unpaid(stage: Stage) -> list[str]:
    """Rewards that a reinforcing stage measures and does not pay."""
    given = stage.keys.get("reward_funcs", ()) if "max_steps" in stage.keys else ()
    return [spec["name"].rpartition(":")[2] for spec in given if isinstance(spec, Mapping) and spec.get("weight") == 0]


def fooled(stage: Stage, name: str, metrics: Sequence[Mapping[str, Any]]) -> str:
    """The unpaid reward against the one that is paid, update by update: where it turns down, the paid one is fooled."""
    metric = f"rewards/{name}/mean"
    both = [(line["reward"], line[metric]) for line in metrics if line.get(metric) is not None]
    if not both:
        return ""
    width = 2 * (len(both) // PLACES) + 1
    paid, true = (moving_average(values, width)[:: max(1, width // 2)] for values in zip(*both, strict=True))
    chart = Chart(title=f"{stage.name}: {name} (up), which is not paid, against what is", lines={metric: name})
    return markup.figure(chart, [Curve(label=stage.name, colour=COLOURS[0], steps=paid, values=true)])
