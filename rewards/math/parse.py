"""A small recursive-descent parser from normalised text to a tree. Nothing here, or after it, executes text."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from rewards.math.tokens import (
    CONSTANTS,
    CURRENCIES,
    FUNCTIONS,
    GREEK,
    NOT_UNITS,
    RELATIONS,
    SHORT_UNITS,
    tokens_of,
)
from rewards.math.tree import Based, Collection, Name, Node, NotMath, Number, Operation, Quantity, Relation

MAX_CHARACTERS = 300
MAX_DEPTH = 25
DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")


def parse(text: str) -> Node:
    """The tree of a normalised answer. Raises NotMath for words, dates, and whatever exceeds the caps."""
    if len(text) > MAX_CHARACTERS:
        raise NotMath(f"longer than {MAX_CHARACTERS} characters")
    if text.count('"') == 2 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
        if text.isalpha() and len(text) > 1:
            raise NotMath("a word")
    if DATE.fullmatch(text):
        raise NotMath("a date")
    return _Parser(tokens_of(text)).whole()


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.sign = "+"  # what \pm means on this pass
        self.met_plus_minus = False

    # -- reading tokens

    def peek(self, ahead: int = 0) -> str:
        position = self.at + ahead
        return self.tokens[position] if position < len(self.tokens) else ""

    def take(self, *allowed: str) -> str:
        token = self.peek()
        if allowed and token not in allowed:
            raise NotMath(f"{token or 'the end'!r} where {' or '.join(allowed)} was expected")
        self.at += 1
        return token

    def nested(self, rule: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotMath("nested too deep")
        node = rule()
        self.depth -= 1
        return node

    # -- collections and relations

    def whole(self) -> Node:
        node = self.free_list()
        if self.at < len(self.tokens):
            raise NotMath(f"{self.peek()!r} was not expected")
        return node

    def free_list(self) -> Node:
        items = self.both_signs()
        while self.at_separator():
            while self.at_separator():
                self.at += 1
            items += self.both_signs()
        return items[0] if len(items) == 1 else Collection("list", tuple(items))

    def at_separator(self) -> bool:
        return self.peek().strip('"').strip() in (",", "or", "and", ";")

    def both_signs(self) -> list[Node]:
        r"""One item, or two if it holds a \pm."""
        start, self.met_plus_minus = self.at, False
        first = self.item()
        if not self.met_plus_minus:
            return [first]
        self.at, self.sign = start, "-"
        second = self.item()
        self.sign = "+"
        return [first, second]

    def item(self) -> Node:
        left = self.union()
        if self.peek() not in RELATIONS:
            return left
        kind, right = self.take(), self.union()
        if self.peek() in RELATIONS:
            raise NotMath("a chain of relations")
        return Relation(kind, left, right)

    def union(self) -> Node:
        items = [self.quantity()]
        while self.peek() == r"\cup":
            self.at += 1
            items.append(self.quantity())
        return items[0] if len(items) == 1 else Collection("union", tuple(items))

    def quantity(self) -> Node:
        currency = CURRENCIES.get(self.peek(), "")
        self.at += bool(currency)
        start = self.at
        value = self.nested(self.sum)
        read = {token.lstrip("\\") for token in self.tokens[start : self.at]}
        unit = currency or self.unit()
        if unit == "degree" and read & FUNCTIONS - {"sqrt"}:
            raise NotMath("degrees inside a function")
        return Quantity(value, unit) if unit else value

    def unit(self) -> str:
        if self.peek() in ("%", "°"):
            return self.take().replace("°", "degree")
        if self.peek() in CURRENCIES:
            return CURRENCIES[self.take()]
        names = []
        while self.at_unit():
            names.append(_plain(self.take()))
        if not names:
            return ""
        if names == ["percent"]:
            return "%"
        unit = " ".join(name.removesuffix("s") if len(name) > 3 else name for name in names)
        if self.peek() == "^":
            self.at += 1
            power = self.power_argument()
            unit += f"^{power.value}" if isinstance(power, Number) else "^?"
        return unit

    def at_unit(self) -> bool:
        token = self.peek()
        if self.at_separator() or token in FUNCTIONS or token in CONSTANTS or NOT_UNITS & set(_plain(token).split()):
            return False
        return token.startswith('"') or (token.isalpha() and (len(token) > 2 or token in SHORT_UNITS))

    # -- arithmetic

    def sum(self) -> Node:
        node = self.product()
        while self.peek() in ("+", "-", r"\pm"):
            minus = self.signed()
            right = self.product()
            node = _operation("+", node, _operation("neg", right) if minus else right)
        return node

    def signed(self) -> bool:
        sign = self.take()
        self.met_plus_minus |= sign == r"\pm"
        return (self.sign if sign == r"\pm" else sign) == "-"

    def product(self) -> Node:
        if self.peek() in ("+", "-", r"\pm"):
            minus = self.signed()
            if self.peek() in ("+", "-", r"\pm"):
                raise NotMath("two signs in a row")
            node = self.product()
            return _operation("neg", node) if minus else node
        node = self.power()
        while True:
            operator = self.peek()
            if operator in ("*", r"\cdot", r"\times", "/"):
                self.at += 1
                right = self.signed_power()
                node = _operation("/" if operator == "/" else "*", node, right)
            elif self.starts_factor():
                node = _juxtaposed(node, self.power())
            else:
                return node

    def signed_power(self) -> Node:
        if self.peek() != "-":
            return self.power()
        self.at += 1
        return _operation("neg", self.power())

    def starts_factor(self) -> bool:
        token = self.peek()
        name = len(token) == 1 and token.isalpha()
        opens = token in ("(", r"\{", "{", r"\frac", r"\sqrt") or token in CONSTANTS
        return name or opens or token.lstrip("\\") in FUNCTIONS or token[1:] in GREEK

    def power(self) -> Node:
        node = self.nested(self.primary)
        while self.peek() == "!":
            self.at += 1
            node = _operation("!", node)
        if self.peek() == "^":
            self.at += 1
            node = _operation("^", node, self.nested(self.power_argument))
        return node

    def power_argument(self) -> Node:
        if self.peek() == "-":
            self.at += 1
            return _operation("neg", self.nested(self.power_argument))
        return self.power() if self.peek() != "{" else self.braced()

    def primary(self) -> Node:
        token = self.peek()
        if token[:1].isdigit() or (token[:1] == "." and token[1:2].isdigit()):
            return self.number()
        if token in ("(", "[", r"\{", "{", r"\langle"):
            return self.bracketed()
        if token.startswith(r"\begin"):
            return self.matrix()
        if token in ("|", r"\lvert"):
            self.at += 1
            node = _operation("abs", self.nested(self.sum))
            self.take("|", r"\rvert")
            return node
        if token == r"\frac":
            self.at += 1
            return _operation("/", self.argument(), self.argument())
        if token.lstrip("\\") in FUNCTIONS:
            return self.function()
        return self.name()

    def number(self) -> Node:
        token = self.take()
        if self.peek() == "_":
            self.at += 1
            base = self.argument()
            if not isinstance(base, Number):
                raise NotMath("a base that is no number")
            return Based(token, str(base.value))
        value = Fraction(token)
        if token.isdigit() and self.peek().isdigit() and self.peek(1) == "/" and self.peek(2).isdigit():
            numerator, _, denominator = self.take(), self.take(), self.take()
            value += _ratio(int(numerator), int(denominator))
        elif token.isdigit() and self.peek() == r"\frac":
            return self.mixed(value)
        return Number(value)

    def mixed(self, whole: Fraction) -> Node:
        start = self.at
        fraction = self.primary()
        match fraction:
            case Operation("/", (Number(numerator), Number(denominator))):
                return Number(whole + _ratio(numerator, denominator))
        self.at = start
        return Number(whole)

    def bracketed(self) -> Node:
        opening = self.take()
        if opening == "{":
            self.at -= 1
            return self.braced()
        items = self.both_signs() if opening == r"\{" else [self.item()]
        while self.peek() == ",":
            self.at += 1
            items += self.both_signs() if opening == r"\{" else [self.item()]
        closing = self.take(*{r"\{": [r"\}"], r"\langle": [r"\rangle"]}.get(opening, [")", "]"]))
        if opening == r"\{":
            return items[0] if len(items) == 1 else Collection("list", tuple(items))
        if len(items) == 1 and (opening, closing) in (("(", ")"), ("[", "]")):
            return items[0]
        return Collection({r"\langle": "()"}.get(opening, opening + closing), tuple(items))

    def braced(self) -> Node:
        self.take("{")
        node = self.nested(self.sum)
        self.take("}")
        return node

    def argument(self) -> Node:
        r"""What follows a command: a group, or one digit or letter, as in \frac12."""
        if self.peek() == "{":
            return self.nested(self.braced)
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return Number(Fraction(self.take())) if token.isdigit() else self.nested(self.primary)

    def function(self) -> Node:
        name = self.take().lstrip("\\")
        if name == "sqrt":
            return self.root()
        exponent = base = None
        if self.peek() == "_":
            self.at += 1
            base = self.argument()
        if self.peek() == "^":
            self.at += 1
            exponent = self.power_argument()
        inside = self.nested(self.function_argument)
        node = _operation(name, inside) if base is None else _operation("log", inside, base)
        return node if exponent is None else _operation("^", node, exponent)

    def function_argument(self) -> Node:
        if self.peek() in ("(", "{", "["):
            return self.bracketed()
        node = self.power()
        while self.starts_factor() and self.peek().lstrip("\\") not in FUNCTIONS - {"sqrt"} and self.peek() != "(":
            node = _juxtaposed(node, self.power())
        return node

    def root(self) -> Node:
        degree: Node = Number(Fraction(2))
        if self.peek() == "[":
            self.at += 1
            degree = self.nested(self.sum)
            self.take("]")
        if self.peek().isdigit() and len(self.peek()) > 1 and self.tokens[self.at - 1] == r"\sqrt":
            raise NotMath("a root sign before several digits without braces")
        return _operation("sqrt", self.argument(), degree)

    def matrix(self) -> Node:
        self.at += 1
        rows: list[list[Node]] = [[self.item()]]
        while not self.peek().startswith(r"\end"):
            if self.take("&", r"\\") == "&":
                rows[-1].append(self.item())
            elif not self.peek().startswith(r"\end"):
                rows.append([self.item()])
        self.at += 1
        if all(len(row) == 1 for row in rows) and len(rows) > 1:
            return Collection("()", tuple(row[0] for row in rows))
        return Collection("rows", tuple(Collection("()", tuple(row)) for row in rows))

    def name(self) -> Node:
        token = self.take()
        if token in CONSTANTS:
            return Name(CONSTANTS[token])
        if not (len(token) == 1 and token.isascii() and token.isalpha()) and token[1:] not in GREEK:
            raise NotMath(f"{token or 'the end'!r} is not an expression")
        if self.peek() == "_":
            self.at += 1
            index = self.argument()
            token += f"_{index.value if isinstance(index, Number) else getattr(index, 'name', '?')}"
        return Name(token)


def _plain(word: str) -> str:
    return word.strip('"').strip(" .").casefold()


def _operation(kind: str, *arguments: Node) -> Node:
    if not all(isinstance(argument, Number | Name | Operation) for argument in arguments):
        raise NotMath(f"{kind} of something that is not a number")
    return Operation(kind, arguments)


def _juxtaposed(left: Node, right: Node) -> Node:
    if isinstance(right, Number):
        raise NotMath("two numbers side by side")
    return _operation("*", left, right)


def _ratio(numerator: int | Fraction, denominator: int | Fraction) -> Fraction:
    if denominator == 0:
        raise NotMath("division by zero")
    return Fraction(numerator) / denominator
