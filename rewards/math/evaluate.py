"""The value of an expression: exact where it is rational, else to 60 digits at fixed points, always within caps.

Equality of two expressions is decided from values, never by algebraic simplification, whose time has no bound.
"""

from __future__ import annotations

import hashlib
import math
import operator
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from rewards.math.tree import Expression, Name, Number

MAX_BITS = 20_000  # of an exact power
MAX_FACTORIAL = 500
MAX_LOGARITHM = 10_000.0  # of the size of a power, natural
MAX_ANGLE = 1e6
DIGITS = 60
POINTS = ((0.3, 2.3), (-2.3, -0.3), (3.0, 11.0))  # ranges in which variables are sampled

_local = threading.local()


class Undefined(ValueError):
    """No value, or none within the caps."""


def exact(node: Expression) -> Fraction | None:
    """The rational value, None if there is none in closed form. Raises Undefined for 1/0 and beyond the caps."""
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Name):
        return None
    values = [exact(argument) for argument in node.arguments]
    if None in values:
        return None
    rule = _EXACT.get(node.kind)
    return rule(*values) if rule else None


def _exact_ratio(numerator: Fraction, denominator: Fraction) -> Fraction:
    if denominator == 0:
        raise Undefined("division by zero")
    return numerator / denominator


def _exact_factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise Undefined("a factorial out of range")
    return Fraction(math.factorial(int(value)))


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS:
        raise Undefined("a power out of range")
    if base == 0 and exponent <= 0:
        raise Undefined("zero to a power that is not positive")
    return base ** int(exponent)


def _exact_root(value: Fraction, degree: Fraction) -> Fraction | None:
    if value < 0 or degree != 2:
        return None
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    return Fraction(top, bottom) if Fraction(top * top, bottom * bottom) == value else None


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "+": operator.add,
    "*": operator.mul,
    "/": _exact_ratio,
    "neg": operator.neg,
    "abs": abs,
    "^": _exact_power,
    "sqrt": _exact_root,
    "!": _exact_factorial,
}


_ARITHMETIC = {"+": operator.add, "*": operator.mul, "/": operator.truediv, "neg": operator.neg}


def same_value(left: Expression, right: Expression) -> bool:
    """Whether two expressions agree, as functions of their variables. Raises Undefined where it cannot be told."""
    left_exact, right_exact = exact(left), exact(right)
    if left_exact is not None and right_exact is not None:
        return left_exact == right_exact
    return all(_close(numeric(left, point), numeric(right, point)) for point in range(len(POINTS)))


def proportional(left: Expression, right: Expression) -> bool:
    """Whether left / right is one non-zero constant at all points: the same equation, scaled."""
    tops = [numeric(left, point) for point in range(len(POINTS))]
    bottoms = [numeric(right, point) for point in range(len(POINTS))]
    if any(value == 0 for value in tops + bottoms):
        return False
    pairs = zip(tops[1:], bottoms[1:], strict=True)
    return all(_close(top * bottoms[0], bottom * tops[0]) for top, bottom in pairs)


def names(node: Expression) -> frozenset[str]:
    """The variables of an expression."""
    if isinstance(node, Number):
        return frozenset()
    if isinstance(node, Name):
        return frozenset() if node.name in ("pi", "e", "i", "oo") else frozenset([node.name])
    return frozenset().union(*(names(argument) for argument in node.arguments))


def numeric(node: Expression, point: int) -> Any:
    """The value at one of the fixed points, as an mpmath number of this thread's context."""
    context = _context()
    if isinstance(node, Number):
        return context.mpf(node.value.numerator) / node.value.denominator
    if isinstance(node, Name):
        return _named(node.name, point, context)
    values = [numeric(argument, point) for argument in node.arguments]
    try:
        value = _numeric_operation(node.kind, values, context)
    except (ZeroDivisionError, ValueError, OverflowError) as error:
        raise Undefined(str(error)) from error
    if not context.isfinite(value):
        raise Undefined("not finite")
    return value


def _numeric_operation(kind: str, values: list[Any], context: Any) -> Any:
    match kind:
        case "+" | "*" | "/" | "neg":
            return _ARITHMETIC[kind](*values)
        case "abs":
            return abs(values[0])
        case "^":
            return _numeric_power(values[0], values[1], context)
        case "sqrt":
            return _numeric_power(values[0], 1 / values[1], context)
        case "exp":
            return _numeric_power(context.e, values[0], context)
        case "!":
            raise Undefined("a factorial of something that is not a small whole number")
    return _numeric_function(kind, values, context)


def _numeric_function(kind: str, values: list[Any], context: Any) -> Any:
    if abs(values[0]) > MAX_ANGLE and kind not in ("log", "ln", "lg"):
        raise Undefined(f"{kind} out of range")
    if kind in ("log", "ln", "lg"):
        base = values[1] if len(values) == 2 else context.mpf(10) if kind == "lg" else context.e
        return context.log(values[0]) / context.log(base)
    inverse = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
    return getattr(context, inverse.get(kind, kind))(values[0])


def _numeric_power(base: Any, exponent: Any, context: Any) -> Any:
    if base == 0:
        if context.re(exponent) <= 0:
            raise Undefined("zero to a power that is not positive")
        return base
    if abs(exponent) * (abs(context.log(base)) + 1) > MAX_LOGARITHM:
        raise Undefined("a power out of range")
    return base**exponent


def _named(name: str, point: int, context: Any) -> Any:
    constants = {"pi": context.pi, "e": context.e, "i": context.j}
    if name in constants:
        return +constants[name]
    if name == "oo":
        raise Undefined("arithmetic with infinity")
    low, high = POINTS[point]
    digest = hashlib.sha256(f"{name}:{point}".encode()).digest()
    share = context.mpf(int.from_bytes(digest[:16])) / 2**128
    return low + share * (context.mpf(high) - low)


def _close(left: Any, right: Any) -> bool:
    return abs(left - right) <= max(abs(left), abs(right)) * _context().mpf(10) ** (20 - DIGITS)


def _context() -> Any:
    """mpmath keeps its precision in the context, so every thread has its own."""
    if not hasattr(_local, "context"):
        from mpmath import MPContext

        _local.context = MPContext()
        _local.context.dps = DIGITS
    return _local.context
