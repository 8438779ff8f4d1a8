"""`report.html`: one self-contained page about a run. Curves, before and after, samples, where the time went, config.

Nothing on the page comes from a network, and no script runs on it; model text is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from grpo.errors import ConfigError
from grpo.files import write_text_atomic
from grpo.monitor.charts import Chart, points, svg
from grpo.monitor.completions import completion_steps, read_completions
from grpo.monitor.metrics import describe, read_metrics
from grpo.monitor.report_style import CSS
from grpo.monitor.text import visible

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.yaml"
EVALUATION_FOLDER = "evaluation"  # has a completions folder of its own

Cell = str | float | None
Sample = Mapping[str, Any]
SAMPLE_KEYS = ("question", "answer", "completion", "correct", "length")

CHARTS = (
    Chart(title="Reward", lines={"reward": "reward"}),
    Chart(
        title="Accuracy",
        lines={"solved_rate": "training rollouts", "eval/pass@1": "held-out pass@1", "eval/pass@8": "held-out pass@8"},
        share=True,
    ),
    Chart(
        title="Completion length",
        lines={"completions/mean_length": "training rollouts", "eval/mean_length": "held-out"},
    ),
    Chart(title="Entropy", lines={"entropy": "entropy"}),
    Chart(title="KL to the reference", lines={"kl": "kl"}),
    Chart(title="Gradient norm", lines={"grad_norm": "grad norm"}),
    Chart(
        title="Lost samples",
        lines={"groups/no_signal": "groups with no signal", "completions/clipped_ratio": "completions cut off"},
        share=True,
    ),
)
PHASES = ("sampling", "scoring", "update")


def report_from_run(run_dir: Path | str) -> Path:
    """Makes the report anew from the run folder: metrics.jsonl, config.yaml, and summary.json where the run has ended.

    summary.json: `before` and `after` (metric -> value) make the table; `samples` ({"before": [...], "after": [...]})
    and `notes` (list of text) are used where present, the run's evaluations where not. Raises ConfigError for a folder
    without metrics.
    """
    run_dir = Path(run_dir)
    if not read_metrics(run_dir):
        raise ConfigError(f"{run_dir} holds no metrics.jsonl with a line in it; give the output_dir of a run")
    summary_path = run_dir / SUMMARY_FILE
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else {}
    before_after = summary if "before" in summary else _evaluations(read_metrics(run_dir))
    return write_report(
        run_dir,
        title=f"Run {run_dir.resolve().name}",
        table=before_after_table(before_after),
        samples=summary.get("samples") or evaluation_samples(run_dir),
        notes=summary.get("notes", []),
    )


def before_after_table(summary: Mapping[str, Any]) -> list[list[Cell]]:
    """Heading and rows of the table from {"before": {metric: value}, "after": {...}}; empty where both are missing."""
    before, after = summary.get("before", {}), summary.get("after", {})
    names = dict.fromkeys([*before, *after])
    rows: list[list[Cell]] = [[name, before.get(name), after.get(name)] for name in names]
    return [["held-out", "before", "after"], *rows] if rows else []


def evaluation_samples(run_dir: Path | str, count: int = 3) -> dict[str, list[Sample]]:
    """`count` sampled solutions of one held-out problem, at the first and at the last evaluation; not hand-picked.

    It is the first problem that both evaluations have, and its first siblings. Empty before the second evaluation.
    """
    folder = Path(run_dir) / EVALUATION_FOLDER
    if not folder.exists() or len(steps := completion_steps(folder)) < 2:
        return {}
    before, after = (read_completions(folder, step) for step in (steps[0], steps[-1]))
    known = {row["problem_id"] for row in after}
    problem = next((row["problem_id"] for row in before if row["problem_id"] in known), None)
    return {
        when: [{key: row[key] for key in SAMPLE_KEYS} for row in rows if row["problem_id"] == problem][:count]
        for when, rows in (("before", before), ("after", after))
    }


def write_report(
    run_dir: Path | str,
    *,
    title: str,
    table: Sequence[Sequence[Cell]],
    samples: Mapping[str, Sequence[Sample]],
    notes: Sequence[str] = (),
) -> Path:
    """Writes `<run_dir>/report.html` and returns its path.

    table: a heading row, then rows. samples: `before` and `after`, completions of the same problems in the same order;
    each a mapping with question, answer (gold) and completion, and correct, length (tokens) where known.
    Curves, times and the config come from the run folder.
    """
    run_dir = Path(run_dir)
    metrics = read_metrics(run_dir)
    sections = (
        ("Before and after", _table(table)),
        ("Curves over updates", _curves(metrics)),
        ("Where the time went", _times(metrics)),
        ("The same problem, before and after", _samples(samples)),
        ("Configuration", _config(run_dir)),
    )
    body = "".join(f"<section><h2>{heading}</h2>{html}</section>" for heading, html in sections if html)
    paragraphs = "".join(f"<p>{_text(note)}</p>" for note in notes)
    page = _PAGE.format(title=_text(title), css=CSS, facts=_facts(metrics), notes=paragraphs, body=body)
    path = run_dir / REPORT_FILE
    write_text_atomic(path, page)
    return path


def _evaluations(metrics: list[dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """The first and the last evaluation among the metrics; only the first where there was one."""
    lines = [{n.removeprefix("eval/"): v for n, v in line.items() if n.startswith("eval/")} for line in metrics]
    lines = [line for line in lines if line]
    return dict(zip(("before", "after"), [lines[0], lines[-1]] if len(lines) > 1 else lines, strict=False))


def _facts(metrics: list[dict[str, float | None]]) -> str:
    if not metrics:
        return "no update yet"
    facts = [f"{metrics[-1]['step']:,} updates"]
    tokens = points(metrics, "num_tokens")[1]
    if tokens:
        facts.append(f"{sum(tokens):,.0f} tokens")
    return " · ".join(facts)


def _table(rows: Sequence[Sequence[Cell]], *, css_class: str = "numbers") -> str:
    if not rows:
        return ""
    heading, *body = rows
    head = "".join(f"<th>{_cell(cell)}</th>" for cell in heading)
    lines = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide"><table class="{css_class}"><tr>{head}</tr>{lines}</table></div>'


def _curves(metrics: list[dict[str, float | None]]) -> str:
    names = dict.fromkeys(name for line in metrics for name in line)
    parts = {n: n.split("/")[1] for n in names if n.startswith("rewards/") and n.endswith("/mean")}
    charts = [*CHARTS, Chart(title="Reward parts", lines=parts)]
    figures = "".join(_figure(chart, svg(chart, metrics)) for chart in charts)
    return f'<div class="grid">{figures}</div>' if figures else ""


def _figure(chart: Chart, drawn: str) -> str:
    if not drawn:
        return ""
    caption = _text(describe(next(iter(chart.lines))) or "")
    return f"<figure><h3>{_text(chart.title)}</h3>{drawn}<figcaption>{caption}</figcaption></figure>"


def _times(metrics: list[dict[str, float | None]]) -> str:
    seconds = {phase: sum(points(metrics, f"seconds/{phase}")[1]) for phase in PHASES}
    total = sum(seconds.values())
    if not total:
        return ""
    bars = "".join(f'<i class="{phase}" style="flex-grow:{value / total:.4f}"></i>' for phase, value in seconds.items())
    keys = "".join(
        f'<span><b class="{phase}"></b>{phase} {value / total:.0%}, {_duration(value)}</span>'
        for phase, value in seconds.items()
    )
    return f'<div class="bar">{bars}</div><p class="keys">{keys}<span>together {_duration(total)}</span></p>'


def _samples(samples: Mapping[str, Sequence[Sample]]) -> str:
    pairs: dict[tuple[str, str], list[str]] = {}
    for before, after in zip(samples.get("before", []), samples.get("after", []), strict=True):
        pair = f'<div class="pair">{_sample("before", before)}{_sample("after", after)}</div>'
        pairs.setdefault((before["question"], before["answer"]), []).append(pair)
    return "".join(
        f'<article><p class="question">{_text(question)}</p>'
        f'<p class="gold">gold answer: <code>{_text(answer)}</code></p>{"".join(of_problem)}</article>'
        for (question, answer), of_problem in pairs.items()
    )


def _sample(when: str, sample: Sample) -> str:
    correct = sample.get("correct")
    verdict = {True: "correct", False: "wrong", None: ""}[correct]
    length = f", {sample['length']} tokens" if "length" in sample else ""
    return (
        f'<div class="sample {verdict}"><h3>{when} <span>{verdict}{length}</span></h3>'
        f"<pre>{_text(sample['completion'])}</pre></div>"
    )


def _config(run_dir: Path) -> str:
    path = run_dir / CONFIG_FILE
    if not path.exists():
        return ""
    flat = _flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    rows = [["key", "value"], *([key, str(value)] for key, value in flat.items())]
    return f"<details><summary>{len(flat)} keys</summary>{_table(rows, css_class='config')}</details>"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _cell(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    return _text(str(cell))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _text(text: str) -> str:
    return escape(visible(text))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>{facts}</p>{notes}</header>
{body}
</main>
</body>
</html>
"""
