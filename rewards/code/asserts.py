"""Python assertions taken apart: an expression that the box evaluates, and the value that stays here.

`assert f(2) == 4` becomes the expression `f(2)` and the expected 4. An assertion whose expected side is not written
out as a constant cannot be taken apart: it would have to be run beside the program, which could then make it pass.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KINDS = {"set": set, "frozenset": frozenset, "tuple": tuple, "list": list, "dict": dict, "float": float}
ISCLOSE = {"rel_tol": 1e-9, "abs_tol": 0.0}  # the defaults of math.isclose


class Opaque(ValueError):
    """A test that cannot be taken apart into a call and a constant."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`expression` must give `expected`, exactly or within the tolerances of math.isclose."""

    expression: str
    expected: Any
    rel_tol: float = 0.0
    abs_tol: float = 0.0


def claims(source: str) -> list[Claim]:
    """The claims of a text of assertions. Raises Opaque for anything else in it."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError, SystemError) as error:  # the last: CPython < 3.11.8
        raise Opaque(f"not Python: {source[:80]!r}") from error
    found = []
    for statement in statements:
        if not isinstance(statement, ast.Assert):
            raise Opaque(f"not an assertion: {ast.unparse(statement)[:80]!r}")
        found += [_claim(test) for test in _conjuncts(statement.test)]
    return found


def _conjuncts(test: ast.expr) -> Iterator[ast.expr]:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for value in test.values:
            yield from _conjuncts(value)
    else:
        yield test


def _claim(test: ast.expr) -> Claim:
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _comparison(test.left, test.ops[0], test.comparators[0])
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return Claim(expression=_asked(test), expected=True)
    if isinstance(test, ast.Call) and ast.unparse(test.func) in ("math.isclose", "isclose") and len(test.args) == 2:
        expression, expected = _sides(*test.args)
        tolerances = {keyword.arg: _constant(keyword.value) for keyword in test.keywords}
        if tolerances.keys() <= ISCLOSE.keys():
            return Claim(expression=expression, expected=expected, **ISCLOSE | tolerances)
    if isinstance(test, ast.Call):
        return Claim(expression=f"bool({_asked(test)})", expected=True)
    raise Opaque(f"no equality: {ast.unparse(test)[:80]!r}")


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Claim:
    if isinstance(operator, ast.Eq | ast.Is):
        expression, expected = _sides(left, right)
        if isinstance(operator, ast.Is) and not (expected is None or isinstance(expected, bool)):
            raise Opaque("`is` with something other than None, True or False")
        return Claim(expression=expression, expected=expected)
    near = isinstance(left, ast.Call) and ast.unparse(left.func) == "abs" and isinstance(left.args[0], ast.BinOp)
    if near and isinstance(left.args[0].op, ast.Sub) and isinstance(operator, ast.Lt | ast.LtE):
        expression, expected = _sides(left.args[0].left, left.args[0].right)
        return Claim(expression=expression, expected=expected, abs_tol=_constant(right))
    raise Opaque(f"no equality: {ast.unparse(left)[:40]!r} and {ast.unparse(right)[:40]!r}")


def _sides(left: ast.expr, right: ast.expr) -> tuple[str, Any]:
    """The side that is asked for, and the constant one."""
    try:
        return _asked(left), _constant(right)
    except Opaque:
        return _asked(right), _constant(left)


def _asked(node: ast.expr) -> str:
    """The text of an expression that calls something and compares nothing: a comparison would hold what is expected."""
    kinds = [type(part) for part in ast.walk(node)]
    if ast.Call not in kinds or ast.Compare in kinds:
        raise Opaque(f"not a plain call: {ast.unparse(node)[:80]!r}")
    return ast.unparse(node)


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and not node.keywords:
        return KINDS[node.func.id](*map(_constant, node.args))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError) as error:
        raise Opaque(f"not a constant: {ast.unparse(node)[:80]!r}") from error
