"""The project's Python files, and how they are parsed."""

from __future__ import annotations

import ast
import gc
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "rewards", "grpo", "recipes")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def parsed(source: str) -> ast.Module:
    """Without garbage collection on the way: a finalizer may parse too (pytest's report of one that failed does) or let
    another thread do so, and before 3.11.8 CPython then ends the outer parse with a SystemError (its issue 106905)."""
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()
