"""`report.html`: one self-contained page about a run. Curves, before and after, samples, where the time went, config.

Nothing on the page comes from a network, and no script runs on it; model text is escaped.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo.errors import ConfigError
from grpo.files import write_text_atomic
from grpo.monitor import markup
from grpo.monitor.charts import Chart, curves_of, points
from grpo.monitor.completions import completion_steps, read_completions
from grpo.monitor.markup import Cell
from grpo.monitor.metrics import read_metrics

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"
CONFIG_FILE = "config.yaml"
EVALUATION_FOLDER = "evaluation"  # has a completions folder of its own

Metrics = list[dict[str, float | None]]
Sample = Mapping[str, Any]
SAMPLE_KEYS = ("question", "answer", "completion", "correct", "length")

CHARTS = (
    Chart(title="Reward", lines={"reward": "reward"}),
    Chart(
        title="Loss of a token",
        lines={"nll": "negative log-likelihood", "eval/nll": "held out", "divergence": "from the teacher"},
    ),
    Chart(title="Tokens found likeliest", lines={"mean_token_accuracy": "trained tokens"}, share=True),
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
    Chart(
        title="Groups of a rollout",
        lines={
            "groups/kept": "trained on", "discarded/all_right": "all right", "discarded/all_wrong": "all wrong",
            "discarded/no_signal": "no signal", "discarded/masked": "masked", "discarded/surplus": "surplus",
        },
    ),
    Chart(
        title="Completion tokens",
        lines={"tokens/sampled": "sampled for the rollout", "tokens/trained": "trained on in the update"},
    ),
)  # fmt: skip
TITLES = {"verdicts": "Verdicts of {}, share of completions", "funnel": "Funnel of {}, share of completions"}
PHASES = ("sampling", "scoring", "update")


def report_from_run(run_dir: Path | str) -> Path:
    """Makes the report anew from the run folder: metrics.jsonl, config.yaml, and summary.json where the run has ended.

    summary.json: `before` and `after` (metric -> value) make the table; `samples` ({"before": [...], "after": [...]})
    and `notes` (list of text) are used where present, the run's evaluations where not. Raises ConfigError for a folder
    without metrics.
    """
    run_dir = Path(run_dir)
    first_and_last = dict(zip(("before", "after"), _edges(evaluations(metrics_of(run_dir))), strict=False))
    summary_path = run_dir / SUMMARY_FILE
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else {}
    before_after = summary if "before" in summary else first_and_last
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
    changes = changes_of(metrics, flat_config(run_dir).get("schedule") or [])
    sections = (
        ("Before and after", markup.table(table, css_class="numbers change")),
        ("Changes of the schedule", _schedule(changes)),
        ("Curves over updates", _curves(metrics, changes)),
        ("Where the time went", _times(metrics)),
        ("The same problem, before and after", _samples(samples)),
        ("Configuration", _config(run_dir)),
    )
    path = run_dir / REPORT_FILE
    write_text_atomic(path, markup.page(title, _facts(metrics), sections, notes=notes))
    return path


def metrics_of(run_dir: Path) -> Metrics:
    """The lines of a run that has some; raises ConfigError for a folder that is none."""
    if metrics := read_metrics(run_dir):
        return metrics
    why = "is not a folder" if not run_dir.is_dir() else "holds no metrics.jsonl with a line in it"
    raise ConfigError(f"{run_dir} {why}; give the output_dir of a run")


def evaluations(metrics: Metrics) -> list[dict[str, float | None]]:
    """The held-out figures of every evaluation, in order."""
    lines = [{n.removeprefix("eval/"): v for n, v in line.items() if n.startswith("eval/")} for line in metrics]
    return [line for line in lines if line]


def _edges(found: list[Any]) -> list[Any]:
    """The first and the last; only the first where there is one."""
    return [found[0], found[-1]] if len(found) > 1 else found


def _facts(metrics: Metrics) -> str:
    if not metrics:
        return "no update yet"
    facts = [f"{metrics[-1]['step']:,} updates"]
    tokens = points(metrics, "num_tokens")[1]
    if tokens:
        facts.append(f"{sum(tokens):,.0f} tokens")
    return " · ".join(facts)


def changes_of(metrics: Metrics, schedule: Sequence[Mapping[str, Any]]) -> dict[float, str]:
    """The first update under each line of the schedule -> what the line says."""
    steps, counts = points(metrics, "schedule/changes")
    said = [", ".join(f"{key} {value}" for key, value in line.items() if key != "update") for line in schedule]
    found: dict[float, str] = {}
    for step, before, now in zip(steps, [0.0, *counts], counts, strict=False):
        if now > before:
            found[step] = "; ".join(said[int(before) : int(now)])
    return found


def _schedule(changes: Mapping[float, str]) -> str:
    rows = [[f"{step:,.0f}", text] for step, text in changes.items()]
    return markup.table([["first update", "what changed"], *rows]) if rows else ""


def _curves(metrics: Metrics, changes: Mapping[float, str]) -> str:
    shares = _verdict_shares(metrics)
    charts = [*CHARTS, Chart(title="Reward parts", lines=reward_parts(metrics)), *_charts_of_rewards(shares)]
    drawn = [(chart, curves_of(chart, shares)) for chart in charts]
    figures = "".join(markup.figure(chart, curves, changes) for chart, curves in drawn if curves)
    return f'<div class="grid">{figures}</div>' if figures else ""


def reward_parts(metrics: Metrics) -> dict[str, str]:
    """The metric of each reward's mean -> its name."""
    names = dict.fromkeys(name for line in metrics for name in line)
    return {name: name.split("/")[1] for name in names if name.startswith("rewards/") and name.endswith("/mean")}


def _verdict_shares(metrics: Metrics) -> Metrics:
    """The lines with every count of verdicts as a share of its reward's; one that no completion got is 0."""
    names = dict.fromkeys(name for line in metrics for name in line if name.startswith("verdicts/"))
    lines = []
    for line in metrics:
        totals: dict[str, float] = defaultdict(float)
        for name in names:
            totals[name.rsplit("/", 1)[0]] += line.get(name) or 0.0
        shares = {name: (line.get(name) or 0.0) / total for name in names if (total := totals[name.rsplit("/", 1)[0]])}
        lines.append({**line, **shares})
    return lines


def _charts_of_rewards(metrics: Metrics) -> list[Chart]:
    """For each reward with verdicts: what it said, and how far the completions came."""
    lines: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in dict.fromkeys(name for line in metrics for name in line):
        prefix, *rest = name.split("/")
        if prefix in TITLES:
            lines[prefix, rest[0]][name] = rest[1]
    return [Chart(title=TITLES[prefix].format(reward), lines=of, share=True) for (prefix, reward), of in lines.items()]


def _times(metrics: Metrics) -> str:
    seconds = {phase: sum(points(metrics, f"seconds/{phase}")[1]) for phase in PHASES}
    total = sum(seconds.values())
    if not total:
        return ""
    bars = "".join(f'<i class="{phase}" style="flex-grow:{value / total:.4f}"></i>' for phase, value in seconds.items())
    keys = "".join(
        f'<span><b class="{phase}"></b>{phase} {value / total:.0%}, {markup.duration(value)}</span>'
        for phase, value in seconds.items()
    )
    return f'<div class="bar">{bars}</div><p class="keys">{keys}<span>together {markup.duration(total)}</span></p>'


def _samples(samples: Mapping[str, Sequence[Sample]]) -> str:
    pairs: dict[tuple[str, str], list[str]] = {}
    for before, after in zip(samples.get("before", []), samples.get("after", []), strict=True):
        pair = f'<div class="pair">{_sample("before", before)}{_sample("after", after)}</div>'
        pairs.setdefault((before["question"], before["answer"]), []).append(pair)
    return "".join(
        f'<article><p class="question">{markup.text(question)}</p>'
        f'<p class="gold">gold answer: <code>{markup.text(answer)}</code></p>{"".join(of_problem)}</article>'
        for (question, answer), of_problem in pairs.items()
    )


def _sample(when: str, sample: Sample) -> str:
    correct = sample.get("correct")
    verdict = {True: "correct", False: "wrong", None: ""}[correct]
    length = f", {sample['length']} tokens" if "length" in sample else ""
    return (
        f'<div class="sample {verdict}"><h3>{when} <span>{verdict}{length}</span></h3>'
        f"<pre>{markup.text(sample['completion'])}</pre></div>"
    )


def flat_config(run_dir: Path) -> dict[str, Any]:
    """Every key of the run's config.yaml; empty where there is none."""
    path = run_dir / CONFIG_FILE
    return _flat(yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def _config(run_dir: Path) -> str:
    flat = flat_config(run_dir)
    rows = [["key", "value"], *([key, str(value)] for key, value in flat.items())]
    details = f"<details><summary>{len(flat)} keys</summary>{markup.table(rows, css_class='config')}</details>"
    return details if flat else ""


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat
