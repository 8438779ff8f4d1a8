"""The picture of a chain, read back: boxes apart from each other, an arrow for everything that is taken."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest

from recipes import pipeline
from recipes.chaining.chain import Stage
from recipes.chaining.stage_graph import BOX, HIGH, ON_PAPER, graph

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float]  # left, top


def read(svg: str) -> tuple[dict[str, Box], list[list[tuple[float, float]]]]:
    """Box of each name, and of each arrow the points that it passes."""
    root = ElementTree.fromstring(svg)
    corners = [(float(rect.get("x", "")), float(rect.get("y", ""))) for rect in root.iter(f"{SVG}rect")]
    names = [text.text or "" for text in root.iter(f"{SVG}text") if text.get("font-weight") == "bold"]
    ways = [[float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))] for path in root.iter(f"{SVG}path")]
    return dict(zip(names, corners, strict=True)), [
        list(zip(numbers[::2], numbers[1::2], strict=True)) for numbers in ways
    ]


def joined(svg: str) -> set[tuple[str, str]]:
    boxes, ways = read(svg)
    below = {(x + BOX / 2, y + HIGH): name for name, (x, y) in boxes.items()}
    above = {(x + BOX / 2, y): name for name, (x, y) in boxes.items()}
    return {(below[way[0]], above[way[-1]]) for way in ways}


def a_chain(seed: int) -> list[Stage]:
    draw = random.Random(seed)
    names = [f"s{number}" for number in range(draw.randint(1, 14))]
    return [
        Stage(
            name=name,
            recipe="r1_zero",
            keys={
                "model_name_or_path": draw.choice(["folder/base", *(f"${other}" for other in names[:number])]),
                "data": [f"${other}/rows" for other in names[:number] if draw.random() < 0.2],
            },
        )
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize("seed", range(30))
def test_the_arrows_are_what_is_taken_and_nothing_lies_over_a_box(seed: int) -> None:
    stages = a_chain(seed)
    svg = graph(stages, {"folder/base": "Base"}, look=ON_PAPER)
    taken = {(need, stage.name) for stage in stages for need in stage.needs}
    taken |= {("base", stage.name) for stage in stages if stage.keys["model_name_or_path"] == "folder/base"}
    assert joined(svg) == taken and ">Base</text>" in svg
    boxes, ways = read(svg)
    for (x, y), (other_x, other_y) in combinations(boxes.values(), 2):
        assert abs(x - other_x) > BOX or abs(y - other_y) > HIGH
    for way in ways:
        for (x, _), (next_x, next_y) in zip(way[3:-1:4], way[4::4], strict=True):  # straight down, past a row of boxes
            assert x == next_x
            assert not any(left < x < left + BOX and top < next_y <= top + HIGH for left, top in boxes.values())


def test_evaluations_are_left_out_and_rewards_that_are_models_are_not() -> None:
    judge = {"name": "preference_model", "model_name_or_path": "folder/judge"}
    stages = [
        Stage(name="rl", recipe="r1_zero", keys={"reward_funcs": ["format", judge], "note": "folder/other"}),
        Stage(name="evaluate_rl", recipe="evaluate", keys={"model_name_or_path": "$rl"}),
    ]
    assert joined(graph(stages, {}, look=ON_PAPER)) == {("judge", "rl")}


def test_the_shipped_picture_is_that_of_the_shipped_chain(tmp_path: Path) -> None:
    """If not: python -m recipes.pipeline --config recipes/configs/tiny_v3/pipeline.yaml --draw recipes/stages.svg"""
    config = ROOT / "recipes" / "configs" / "tiny_v3" / "pipeline.yaml"
    assert pipeline.main(["--config", str(config), "--draw", str(tmp_path / "stages.svg")]) == 0
    assert (tmp_path / "stages.svg").read_text() == (ROOT / "recipes" / "stages.svg").read_text()
