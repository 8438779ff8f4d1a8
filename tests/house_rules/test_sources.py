"""The parser of the house rules is not disturbed by what other tests left behind."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator

import pytest

from tests.house_rules.sources import ROOT, parsed


class Garbage:
    """Left to the collector, and parses when it is collected."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        ast.parse("x = 1")


@pytest.fixture
def eager_collector() -> Iterator[None]:
    usual = gc.get_threshold()
    gc.set_threshold(50)
    yield
    gc.set_threshold(*usual)


def test_garbage_that_parses_does_not_end_a_parse(eager_collector: None) -> None:
    source = (ROOT / "grpo" / "loop.py").read_text(encoding="utf-8")
    for _ in range(20):
        for _ in range(20):
            Garbage()
        assert len(parsed(source).body) > 10
    assert gc.isenabled()
