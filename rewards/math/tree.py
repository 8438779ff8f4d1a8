"""The tree that an answer is parsed into."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


class NotMath(ValueError):
    """Text that is not an expression of the small grammar."""


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction


@dataclass(frozen=True, slots=True)
class Name:
    """A variable, or one of the constants pi, e, i, oo."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """kind: + * / ^ neg ! abs, or the name of a function."""

    kind: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    value: Node
    unit: str


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a stated base: 52_8."""

    digits: str
    base: str


@dataclass(frozen=True, slots=True)
class Relation:
    kind: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Collection:
    """kind: 'list' (order free), 'union', 'rows' (a matrix), or the two brackets of a tuple or interval."""

    kind: str
    items: tuple[Node, ...]


Expression = Number | Name | Operation
Node = Expression | Quantity | Based | Relation | Collection
