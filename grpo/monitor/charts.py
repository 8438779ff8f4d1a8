"""Curves of a run as inline SVG, written by hand; text takes its colour from the page, for pages in the dark too.

Drawing must stay cheap, because every run ends with a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

Lines = Sequence[Mapping[str, float | None]]
Range = tuple[float, float]
Marks = Mapping[float, str]  # update -> what changed there

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#06b6d4", "#ec4899")
SMOOTH_FROM = 60  # points; from here on a moving average is drawn over the raw values
FEW = 12  # points; up to here each has a dot
WIDTH, HEIGHT = 420.0, 220.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 402.0, 8.0, 194.0  # of the plot
WHISKER_LEFT = 150.0  # where labels are names
BINS = 30


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture. lines: metric -> label. share: the axis goes from 0 to 100 %."""

    title: str
    lines: Mapping[str, str]
    share: bool = False


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a picture; steps and values are as long as each other and not empty."""

    label: str
    colour: str
    steps: Sequence[float]
    values: Sequence[float]


def curves_of(chart: Chart, metrics: Lines) -> list[Curve]:
    """The chart's lines that were measured; colours belong to lines, measured or not."""
    drawn = [(label, *points(metrics, metric)) for metric, label in chart.lines.items()]
    return [
        Curve(label=label, colour=COLOURS[index % len(COLOURS)], steps=steps, values=values)
        for index, (label, steps, values) in enumerate(drawn)
        if values
    ]


def points(metrics: Lines, metric: str) -> tuple[list[float], list[float]]:
    """(steps, values) where the metric was measured; of several lines for one step the last counts."""
    by_step = {line["step"]: line[metric] for line in metrics if line.get(metric) is not None}
    return list(by_step), list(by_step.values())


def moving_average(values: Sequence[float], width: int) -> list[float]:
    """Centred mean over `width` values (odd), over fewer near the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def ticks(low: float, high: float, *, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers inside [low, high], low < high, near `about` of them; `whole`: whole numbers only."""
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def svg(title: str, curves: Sequence[Curve], *, share: bool = False, marks: Marks = MappingProxyType({})) -> str:
    """The curves as `<svg>` text, x: updates or another figure. share: values from 0 to 1, shown as per cent.
    marks: dashed lines where something changed."""
    places = [step for curve in curves for step in curve.steps]
    steps, whole = _extent(places), all(step == int(step) for step in places)
    values = (0.0, 1.0) if share else _extent([value for curve in curves for value in curve.values])
    lines = [line for curve in curves for line in _curve(curve, steps, values)]
    return _svg(title, HEIGHT, [*_grid(steps, values, share=share, whole=whole), *_marks(marks, steps), *lines])


def histogram(title: str, right: Sequence[int], others: Sequence[int]) -> str:
    """How many numbers lie in each of 30 equal ranges, as `<svg>` text: those of `right` below, the others on top."""
    numbers = [*right, *others]
    low, high = _extent(numbers)
    counts = [[0] * BINS, [0] * BINS]
    for kind, values in enumerate((right, others)):
        for value in values:
            counts[kind][min(BINS - 1, int(BINS * (value - low) / (high - low)))] += 1
    tallest = (0.0, float(max(map(sum, zip(*counts, strict=True)))))
    parts, width = _grid((low, high), tallest, share=False), (RIGHT - LEFT) / BINS
    for bin_, (below, above) in enumerate(zip(*counts, strict=True)):
        for colour, first, last in (("var(--good)", 0, below), ("var(--bad)", below, below + above)):
            top, bottom = _y(last, tallest), _y(first, tallest)
            place = f'x="{LEFT + bin_ * width:.1f}" y="{top:g}" width="{width - 1:.1f}" height="{bottom - top:g}"'
            parts += [f'<rect {place} fill="{colour}"/>'] if last > first else []
    return _svg(title, HEIGHT, parts)


def whiskers(title: str, bars: Mapping[str, tuple[float, float, float]]) -> str:
    """label -> (low, mean, high), shares from 0 to 1, one line each, as `<svg>` text."""
    parts = []
    for number, (label, (low, mean, high)) in enumerate(bars.items()):
        y = 14 + 22 * number
        x_low, x_mean, x_high = (WHISKER_LEFT + (RIGHT - WHISKER_LEFT) * value for value in (low, mean, high))
        parts += [
            f'<text x="{WHISKER_LEFT - 8:g}" y="{y + 4}" text-anchor="end">{escape(label)}</text>',
            f'<path d="M{WHISKER_LEFT:g} {y}H{RIGHT:g}" stroke="currentColor" opacity="0.15"/>',
            f'<path d="M{x_low:.1f} {y}H{x_high:.1f}" stroke="{COLOURS[0]}" stroke-width="3"/>',
            f'<circle cx="{x_mean:.1f}" cy="{y}" r="5" fill="{COLOURS[0]}"/>',
        ]
    return _svg(title, 22 * len(bars) + 6, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )


def _extent(numbers: Sequence[float]) -> Range:
    """Lowest and highest, further apart where all are the same but for rounding."""
    low, high = min(numbers), max(numbers)
    size = max(abs(low), abs(high))
    return (low, high) if high - low > 1e-9 * max(size, 1e-30) else (low - max(size, 1) / 2, high + max(size, 1) / 2)


def _x(step: float, steps: Range) -> float:
    return round(LEFT + (RIGHT - LEFT) * (step - steps[0]) / (steps[1] - steps[0]), 1)


def _y(value: float, values: Range) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * (value - values[0]) / (values[1] - values[0]), 1)


def _grid(steps: Range, values: Range, *, share: bool, whole: bool = True) -> list[str]:
    parts = [f'<path d="M{LEFT:g} {BOTTOM:g}H{RIGHT:g}" stroke="currentColor" opacity="0.6"/>']
    for value in ticks(*values):
        y, label = _y(value, values), f"{value:.0%}" if share else f"{value:g}"
        parts.append(f'<path d="M{LEFT:g} {y:g}H{RIGHT:g}" stroke="currentColor" opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{y + 4:g}" text-anchor="end">{label}</text>')
    for step in ticks(*steps, about=6, whole=whole):
        parts.append(f'<text x="{_x(step, steps):g}" y="{BOTTOM + 18:g}" text-anchor="middle">{step:g}</text>')
    return parts


def _curve(curve: Curve, steps: Range, values: Range) -> list[str]:
    if len(curve.values) < SMOOTH_FROM:
        return [_path(curve, curve.values, steps, values, 'stroke-width="2"'), *_dots(curve, steps, values)]
    smooth = moving_average(curve.values, len(curve.values) // 20 * 2 + 1)
    raw = _path(curve, curve.values, steps, values, 'stroke-width="1" opacity="0.3"')
    return [raw, _path(curve, smooth, steps, values, 'stroke-width="2"')]


def _marks(marks: Marks, steps: Range) -> list[str]:
    return [
        f'<path d="M{_x(step, steps):g} {TOP:g}V{BOTTOM:g}" stroke="currentColor" stroke-dasharray="4 3" opacity="0.5">'
        f"<title>{escape(text)}</title></path>"
        for step, text in marks.items()
        if steps[0] <= step <= steps[1]
    ]


def _path(curve: Curve, shown: Sequence[float], steps: Range, values: Range, style: str) -> str:
    places = " ".join(
        f"{_x(step, steps):g},{_y(value, values):g}" for step, value in zip(curve.steps, shown, strict=True)
    )
    return f'<polyline points="{places}" fill="none" stroke="{curve.colour}" stroke-linejoin="round" {style}/>'


def _dots(curve: Curve, steps: Range, values: Range) -> list[str]:
    if len(curve.values) > FEW:
        return []
    return [
        f'<circle cx="{_x(step, steps):g}" cy="{_y(value, values):g}" r="3" fill="{curve.colour}"/>'
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
