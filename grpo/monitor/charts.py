"""Curves of a run as inline SVG that takes its text colour from the page, so that it is readable on dark pages too."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, float | None]]

INK = "#0a0b0c"  # stands for the page's text colour until the SVG is written
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308")
SMOOTH_FROM = 60  # points; from here on a moving average is drawn over the raw values


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture. lines: metric -> label. share: the axis goes from 0 to 100 %."""

    title: str
    lines: Mapping[str, str]
    share: bool = False


def svg(chart: Chart, metrics: Lines) -> str:
    """The chart as `<svg>` text; empty where no line of it was measured. x: updates."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = {label: points(metrics, metric) for metric, label in chart.lines.items()}
    curves = {label: curve for label, curve in curves.items() if curve[0]}
    if not curves:
        return ""
    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(figsize=(5.2, 2.7), layout="constrained")
        for (label, (steps, values)), colour in zip(curves.items(), cycle(COLOURS), strict=False):
            _draw(axes, steps, values, label, colour)
        _dress(axes, chart, legend=len(curves) > 1)
        page = io.StringIO()
        figure.savefig(page, format="svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
    return _inline(page.getvalue(), chart.title)


def points(metrics: Lines, metric: str) -> tuple[list[float], list[float]]:
    """(steps, values) where the metric was measured; of several lines for one step the last counts."""
    by_step = {line["step"]: line[metric] for line in metrics if line.get(metric) is not None}
    return list(by_step), list(by_step.values())


def moving_average(values: Sequence[float], width: int) -> list[float]:
    """Centred mean over `width` values (odd), over fewer near the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _draw(axes: Axes, steps: list[float], values: list[float], label: str, colour: str) -> None:
    few = len(values) <= 12
    if len(values) < SMOOTH_FROM:
        axes.plot(steps, values, color=colour, label=label, marker="o" if few else None, markersize=4)
        return
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, moving_average(values, len(values) // 20 * 2 + 1), color=colour, label=label)


def _dress(axes: Axes, chart: Chart, *, legend: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.grid(alpha=0.15, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    if chart.share:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if legend:
        axes.legend(frameon=False, loc="best")


def _inline(text: str, title: str) -> str:
    """The `<svg>` element alone, scaling with the page. Ids get the title's name in front: they are page-wide."""
    body = text[text.index("<svg") :]
    body = re.sub(r' (width|height)="[\d.]+pt"', "", body, count=2).replace(INK, "currentColor")
    name = re.sub(r"\W+", "-", title.lower())
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
