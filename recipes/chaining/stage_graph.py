"""The picture of a chain: boxes from top to bottom, each below what it takes from, as SVG.

Evaluations are left out: each would be one more box at the end of an arrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean

from recipes.chaining.chain import Stage

BOX, HIGH = 152, 40
LANE = 8  # width of an arrow that passes a row of boxes
GAP_X, GAP_Y = 16, 26
ON_PAPER = 'xmlns="http://www.w3.org/2000/svg" style="background:#fff;color:#222" font-family="sans-serif" '


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stage, or a model that no stage has made. needs: names of nodes."""

    name: str
    detail: str
    needs: Sequence[str]


Place = tuple[str, int]  # a node or its arrow, and the row in which it stands or passes
Point = tuple[float, float]  # middle and top, in pixels


def graph(stages: Sequence[Stage], rows: Mapping[str, str], *, look: str = "") -> str:
    """`rows`: the tables' names of what a stage made, or of a model's folder. `look`: attributes of the `<svg>`, such
    as ON_PAPER for a file of its own."""
    nodes = nodes_of([stage for stage in stages if stage.recipe != "evaluate"], rows)
    depth = depths(nodes)
    points = placed(nodes, depth)
    arrows = [
        _arrow([points[place] for place in passed(need, node.name, depth)]) for node in nodes for need in node.needs
    ]
    boxes = [_box(node, *points[node.name, depth[node.name]]) for node in nodes]
    width = max(x for x, _ in points.values()) + BOX / 2 + GAP_X
    height = max(y for _, y in points.values()) + HIGH + GAP_Y / 2
    return (
        f'<svg {look}viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="stages" font-size="12" '
        f'fill="currentColor">{"".join(arrows + boxes)}</svg>'
    )


def nodes_of(stages: Sequence[Stage], rows: Mapping[str, str]) -> list[Node]:
    """The models from outside, then the stages."""
    outside = dict.fromkeys(path for stage in stages for path in stage.given)
    return [
        *(Node(name=path, detail=rows.get(path, "model"), needs=()) for path in outside),
        *(
            Node(name=stage.name, detail=rows.get(stage.name, stage.recipe), needs=[*stage.given, *stage.needs])
            for stage in stages
        ),
    ]


def depths(nodes: Sequence[Node]) -> dict[str, int]:
    """The row of each node: behind the last of those it needs."""
    found: dict[str, int] = {}
    for node in nodes:
        found[node.name] = 1 + max((found[need] for need in node.needs), default=-1)
    return found


def passed(start: str, end: str, depth: Mapping[str, int]) -> list[Place]:
    """Where an arrow goes: all arrows of one node share their way down."""
    return [*((start, row) for row in range(depth[start], depth[end])), (end, depth[end])]


def placed(nodes: Sequence[Node], depth: Mapping[str, int]) -> dict[Place, Point]:
    """Row by row, as close as there is room to what is above."""
    last = {need: max(depth[node.name] for node in nodes if need in node.needs) for n in nodes for need in n.needs}
    points: dict[Place, Point] = {}
    for row in range(max(depth.values()) + 1):
        wanted = {
            node.name: _above(node, row, depth, points) for node in nodes if _is_there(node.name, row, depth, last)
        }
        left = 0.0
        for name in sorted(wanted, key=wanted.__getitem__):
            width = BOX if depth[name] == row else LANE
            x = max(left + width / 2, wanted[name])
            points[name, row] = (x, row * (HIGH + GAP_Y) + 1)
            left = x + width / 2 + GAP_X
    return points


def _is_there(name: str, row: int, depth: Mapping[str, int], last: Mapping[str, int]) -> bool:
    return depth[name] == row or depth[name] < row < last.get(name, 0)


def _above(node: Node, row: int, depth: Mapping[str, int], points: Mapping[Place, Point]) -> float:
    """The middle of what the node hangs on: its needs, or its own arrow."""
    above = node.needs if depth[node.name] == row else [node.name]
    return fmean(points[name, row - 1][0] for name in above) if above else BOX / 2 + 1


def _box(node: Node, middle: float, top: float) -> str:
    x, name = middle - BOX / 2, Path(node.name).name
    return (
        f'<rect x="{x:.0f}" y="{top:.0f}" width="{BOX}" height="{HIGH}" rx="6" fill="none" stroke="currentColor"/>'
        f'<text x="{x + 8:.0f}" y="{top + 17:.0f}" font-weight="bold">{escape(name)}</text>'
        f'<text x="{x + 8:.0f}" y="{top + 33:.0f}" opacity="0.7">{escape(node.detail)}</text>'
    )


def _arrow(way: Sequence[Point]) -> str:
    """From the bottom of a box, straight through the rows on the way, to the top of another."""
    (x, y), path = way[0], []
    for number, (next_x, next_y) in enumerate(way[1:]):
        start = y + HIGH
        bend = start + GAP_Y / 2
        path.append(f"{'M' if not number else 'L'}{x:.0f} {start:.0f}")
        path.append(f"C{x:.0f} {bend:.0f} {next_x:.0f} {bend:.0f} {next_x:.0f} {next_y:.0f}")
        x, y = next_x, next_y
    return f'<path d="{"".join(path)}" fill="none" stroke="#2a78d6"/>'
