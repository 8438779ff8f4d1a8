"""Functions, files and config classes stay small. There is no list of exceptions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.house_rules.sources import ROOT, SOURCES, TESTS, parsed

FUNCTION_LINES, FILE_LINES, CONFIG_FIELDS = 60, 400, 12


def nodes(paths: list[Path], *kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    for path in paths:
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_functions_end_within_sixty_lines() -> None:
    found = list(nodes([*SOURCES, *TESTS], ast.FunctionDef, ast.AsyncFunctionDef))
    assert len(found) > 500
    assert [where for where, node in found if node.end_lineno - node.lineno + 1 > FUNCTION_LINES] == []


def test_files_end_within_four_hundred_lines() -> None:
    assert len(SOURCES) > 50
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def test_config_classes_have_at_most_twelve_fields() -> None:
    fields = {
        where: sum(isinstance(line, ast.AnnAssign) and not is_owner(line) for line in node.body)
        for where, node in nodes(SOURCES, ast.ClassDef)
        if node.name.endswith("Config")
    }
    assert len(fields) > 10
    assert {where: count for where, count in fields.items() if count > CONFIG_FIELDS} == {}


def is_owner(line: ast.AnnAssign) -> bool:
    """A field that holds another config class, whose own fields are counted there."""
    return ast.unparse(line.annotation).endswith("Config")
