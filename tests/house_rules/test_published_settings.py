"""The recipes' page sets DeepSeek-R1's numbers beside ours: ours are the files', presets and defaults included."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import pytest

from grpo.config.parse import to_flat
from tests.house_rules.pages import ROOT, TEXT

FAMILIES = ("tiny_v3/pipeline", "qwen2_5_1_5b", "deepseek_v3")  # the columns behind R1's
HEADING, NEXT = "\n### Published settings and ours\n", "\nBeside the stages"
SECTION = TEXT["recipes/README.md"].partition(HEADING)[2].partition(NEXT)[0]


def lines() -> list[tuple[str, list[str], str, list[str]]]:
    """(stage, keys, R1's cell, ours) of every line that names keys; an empty stage is the one above."""
    found, stages = [], []
    for row in re.findall(r"^\| (.*) \|$", SECTION, re.MULTILINE):
        stage, keys, published, *ours = (cell.strip() for cell in row.split("|"))
        stages = re.findall(r"`(\w+)`", stage) or stages
        if names := re.findall(r"`(\w+)`", keys):
            found += [(of, names, published, ours) for of in stages]
    return found


def settings(stage: str, family: str) -> dict[str, Any]:
    path = ROOT / "recipes" / "configs" / family / f"{stage}.yaml"
    parsed = import_module(f"recipes.{stage}").parse(["--config", str(path)])
    return {**to_flat(getattr(parsed, "config", parsed)), **getattr(parsed, "trainer", {})}


def number(text: str) -> float | None:
    found = re.match(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?=$|[\s,])", text)
    return float(found.group().rstrip(",").replace(",", "")) if found else None


@pytest.mark.parametrize("family", FAMILIES)
def test_our_cells_are_the_files_values(family: str) -> None:
    compared, wrong = 0, []
    for stage, keys, _, ours in lines():
        cell = ours[FAMILIES.index(family)]
        for key, part in zip(keys, cell.split(", "), strict=False):
            if (told := number(part)) is not None:
                is_set = float(settings(stage, family)[key])
                compared += 1
                wrong += [f"{stage}: {key}: {cell}, but the file has {is_set:g}"] if told != is_set else []
    assert compared >= 20 and wrong == []


def test_every_published_number_names_its_section() -> None:
    published = [cell for _, _, cell, _ in lines() if number(cell) is not None]
    assert len(published) > 20
    assert [cell for cell in published if not re.search(r"\((?:v1|table \d|[\dB])|as before$", cell)] == []
