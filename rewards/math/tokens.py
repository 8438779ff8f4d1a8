"""The words and signs of a mathematical answer."""

from __future__ import annotations

import re


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


FUNCTIONS = _set("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt asin acos atan lg")
GREEK = _set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi "
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell"
)
CONSTANTS = {"pi": "pi", r"\pi": "pi", r"\infty": "oo", "inf": "oo", "infinity": "oo", "oo": "oo"}
SHORT_UNITS = _set("cm mm km kg mg ml ft in mi lb oz hr")
SHORT_WORDS = _set("no is or an on of to if as at by it we he so up do go my me us")
NOT_UNITS = _set(
    "hundred thousand million billion trillion dozen half plus minus times over divided point squared cubed not "
    "one two three four five six seven eight nine ten maybe wait but then actually"
)
RELATIONS = frozenset(["=", "<", ">", r"\le", r"\ge", r"\ne", r"\in"])
CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound"}
TOKEN = re.compile(
    r"\\(?:begin|end)\{[pb]matrix\}|\\[A-Za-z]+|\\\\|\\[{}|]|\"[^\"]*\"|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3}(?![\d.]))?"
    r"|[A-Za-z]+|\*\*|\S"
)


def tokens_of(text: str) -> list[str]:
    """Numbers, commands, signs, words; letters that spell no known word stand alone, as factors of a product."""
    tokens: list[str] = []
    for token in TOKEN.findall(text):
        known = token in FUNCTIONS or token in CONSTANTS or token in SHORT_UNITS or token in SHORT_WORDS
        if token.isalpha() and len(token) <= 2 and not known:
            tokens.extend(token)
        else:
            tokens.append("^" if token == "**" else token)
    return tokens
