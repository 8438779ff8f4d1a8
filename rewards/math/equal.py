"""The verdict on one answer: text, then exact numbers, then structure, then values; whatever is in doubt is wrong."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.math.evaluate import Undefined, exact, names, proportional, same_value
from rewards.math.normalize import BIDI, compact, normalize, words
from rewards.math.parse import parse
from rewards.math.tree import (
    Based,
    Collection,
    Expression,
    Name,
    Node,
    NotMath,
    Number,
    Operation,
    Quantity,
    Relation,
)
from rewards.reward import Verdict

MAX_ANSWER = 2_000  # characters before normalisation
MAX_GOLD_WORDS = 12
WHOLE = re.compile(r"[+-]?\d{1,300}")


def verify(*, gold: str, answer: str) -> tuple[Verdict, str]:
    """CORRECT, WRONG or UNPARSED, with the stage that decided. Never raises, never executes `answer`, never hangs.

    Strict on value: no tolerance; (1,2) is not {1,2}; 50 is not 50%'s 0.5. Generous on form: LaTeX, spacing,
    thousands separators, mixed numbers, equivalent expressions. A gold that is a plain number is met only by a
    number, a fraction or a power, not by the problem's own sum written out. Units may be left out, not exchanged.
    """
    gold, answer = gold.strip(), answer.strip()
    if gold == answer:
        return Verdict.CORRECT, "same text"
    if WHOLE.fullmatch(gold) and WHOLE.fullmatch(answer):
        return _decided(int(gold) == int(answer), "whole numbers")
    if len(answer) > MAX_ANSWER:
        return Verdict.UNPARSED, "too long"
    gold_text, answer_text = normalize(gold), normalize(answer)
    if _unquoted(gold_text) == _unquoted(answer_text):
        return Verdict.CORRECT, "same text after normalisation"
    return _compare(gold_text, answer_text)


def gold_problem(gold: str) -> str | None:
    """Why nothing could ever be compared with this gold answer; None if it is usable."""
    if not gold.strip():
        return "it is empty"
    text = normalize(gold)
    if not BIDI.isdisjoint(text):
        return "it holds bidirectional control characters"
    if not text.replace('"', "").strip():
        return "nothing is left of it after normalisation"
    try:
        _values_defined(parse(text))
    except NotMath:
        return "it is prose, not an answer" if len(text.split()) > MAX_GOLD_WORDS else None
    except Undefined as error:
        return f"it has no value: {error}"
    return None


def _compare(gold_text: str, answer_text: str) -> tuple[Verdict, str]:
    try:
        gold = parse(gold_text)
    except NotMath:
        return _decided(words(gold_text) == words(answer_text), "as text")
    try:
        answer = parse(answer_text)
        return _decided(_equal(gold, answer), "by value")
    except (NotMath, Undefined) as error:
        return Verdict.UNPARSED, str(error)


def _decided(equal: bool, reason: str) -> tuple[Verdict, str]:
    return (Verdict.CORRECT if equal else Verdict.WRONG), reason


def _unquoted(text: str) -> str:
    return compact(text.replace('"', " ").strip())


def _equal(gold: Node, answer: Node) -> bool:
    gold, answer = _unassigned(gold, answer)
    if isinstance(gold, Quantity) or isinstance(answer, Quantity):
        return _same_quantity(gold, answer)
    if isinstance(gold, Collection) and isinstance(answer, Collection):
        return gold.kind == answer.kind and _same_items(gold, answer)
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relation(gold, answer)
    if isinstance(gold, Based) or isinstance(answer, Based):
        return _same_based(gold, answer)
    if isinstance(gold, Expression) and isinstance(answer, Expression):
        return _same_expression(gold, answer)
    return False


def _same_expression(gold: Expression, answer: Expression) -> bool:
    if gold == answer:
        return True
    if _infinite(gold) or _infinite(answer):
        return False
    if _is_stated(gold) and not _is_stated(answer) and exact(gold) is not None:
        return False  # the problem's own sum, written out again, is no result
    return same_value(gold, answer)


def _is_stated(node: Node) -> bool:
    """A number as one states a result: 5, -3/4, 2^10, \\sqrt{25}, 3 x 10^4; not a sum still to be worked out."""
    match node:
        case Number():
            return True
        case Operation("neg", (inside,)):
            return _is_stated(inside)
        case Operation("/" | "^" | "sqrt", arguments):
            return all(_is_literal(argument) for argument in arguments)
        case Operation("*", (Number(), Operation("^", (Number(value=base), power)))):
            return base == 10 and _is_literal(power)
    return False


def _is_literal(node: Node) -> bool:
    return isinstance(node, Number) or (
        isinstance(node, Operation) and node.kind == "neg" and _is_literal(*node.arguments)
    )


def _infinite(node: Expression) -> bool:
    return node == Name("oo") or node == Operation("neg", (Name("oo"),))


def _unassigned(gold: Node, answer: Node) -> tuple[Node, Node]:
    """Without the `x =` or `f(x) =` that only one side writes, and without `x \\in` on either."""
    gold, answer = _without_membership(gold), _without_membership(answer)
    if isinstance(gold, Relation) and not isinstance(answer, Relation):
        return _right_side(gold), answer
    if isinstance(answer, Relation) and not isinstance(gold, Relation):
        return gold, _right_side(answer)
    return gold, answer


def _without_membership(node: Node) -> Node:
    inside = isinstance(node, Relation) and node.kind == r"\in" and isinstance(node.left, Name)
    return node.right if inside else node


def _right_side(relation: Relation) -> Node:
    match relation:
        case Relation("=", Name(name), right) if not isinstance(right, Expression) or name not in names(right):
            return right
        case Relation("=", Operation("*", (Name("f" | "g" | "h"), Name())), right):
            return right
    return relation


def _same_quantity(gold: Node, answer: Node) -> bool:
    gold_value, gold_unit = (gold.value, gold.unit) if isinstance(gold, Quantity) else (gold, "")
    answer_value, answer_unit = (answer.value, answer.unit) if isinstance(answer, Quantity) else (answer, "")
    if "%" in (gold_unit, answer_unit) and gold_unit != answer_unit:
        return _same_percent(gold_value, gold_unit, answer_value, answer_unit)
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return False
    return _equal(gold_value, answer_value)


def _same_percent(gold: Node, gold_unit: str, answer: Node, answer_unit: str) -> bool:
    """One side writes %: gold 50% is met by 0.5 and by 50; gold 50 is not met by 50%."""
    if (gold_unit and answer_unit) or not (isinstance(gold, Expression) and isinstance(answer, Expression)):
        return False
    hundred = Number(Fraction(100))
    if gold_unit:
        return _same_expression(gold, answer) or same_value(Operation("/", (gold, hundred)), answer)
    return _is_stated(answer) and same_value(gold, Operation("/", (answer, hundred)))


def _same_items(gold: Collection, answer: Collection) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    if gold.kind not in ("list", "union"):
        return all(_equal(left, right) for left, right in zip(gold.items, answer.items, strict=True))
    unmatched = list(answer.items)
    for item in gold.items:
        found = next((index for index, other in enumerate(unmatched) if _equal(item, other)), None)
        if found is None:
            return False
        del unmatched[found]
    return True


def _same_relation(gold: Relation, answer: Relation) -> bool:
    if gold.kind != answer.kind:
        return False
    sides = (gold.left, gold.right, answer.left, answer.right)
    if gold.kind == "=" and all(isinstance(side, Expression) for side in sides):
        return proportional(_difference(gold), _difference(answer))
    return _equal(gold.left, answer.left) and _equal(gold.right, answer.right)


def _difference(relation: Relation) -> Expression:
    return Operation("+", (relation.left, Operation("neg", (relation.right,))))


def _same_based(gold: Node, answer: Node) -> bool:
    """Digits and base; the base may be left out if the digits agree."""
    return _digits(gold) == _digits(answer) and len({_base(gold), _base(answer)} - {""}) == 1


def _digits(node: Node) -> str:
    if isinstance(node, Based):
        return node.digits
    return str(node.value) if isinstance(node, Number) else ""


def _base(node: Node) -> str:
    return node.base if isinstance(node, Based) else ""


def _values_defined(node: Node) -> None:
    match node:
        case Collection(items=items):
            for item in items:
                _values_defined(item)
        case Quantity(value=value):
            _values_defined(value)
        case Number() | Operation():
            exact(node)
