"""One spelling for what is written in many: LaTeX style, Unicode digits and signs, separators, white space."""

from __future__ import annotations

import re
import unicodedata

SIGNS = {
    "−": "-",
    "﹣": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
}
RENAMED = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\leq": r"\le",
    r"\geq": r"\ge",
    r"\neq": r"\ne",
    r"\degree": "°",
    r"\left": "",
    r"\right": "",
    r"\displaystyle": "",
    r"\quad": " ",
    r"\qquad": " ",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
}
COMMAND = re.compile(r"\\[A-Za-z]+")
QUOTED = re.compile(r"\\(?:text|mbox|textrm|textnormal|mathrm|operatorname|textit)\s*\{([^{}\"]*)\}")
STYLED = re.compile(r"\\(?:textbf|mathbf|boldsymbol|underline|mathit|bm|boxed|fbox)\s*\{([^{}]*)\}")
DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})")
SPACES = re.compile(r"(?<!\\)\\[;: ]|~|\s+")
THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,])")
THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|\\,|,\s*\\!|\\!,?)\s*(?=\d{3}(?!\d))")
WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s'-]+[^\W\d_]+)*")
MATH_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def normalize(text: str) -> str:
    r"""`text` in one spelling; what `\text{}` held stands in double quotes, as the parser wants it. Never raises."""
    if text.isdigit() and text.isascii():
        return text
    if not text.isascii():
        text = _ascii(text)
    text = _bare(text)
    text = THIN_THOUSANDS.sub(",", text)
    if "\\" in text:
        text = text.replace("\\!", "").replace("\\,", " ").replace("\\%", "%").replace("\\$", "$")
        text = DEGREES.sub("°", text)
        text = COMMAND.sub(lambda found: RENAMED.get(found[0], found[0]), text)
        text = STYLED.sub(r"\1", text)
        text = QUOTED.sub(r'"\1"', text)
    text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    return SPACES.sub(" ", text).strip()


def compact(text: str) -> str:
    """Without the spaces that separate nothing; "1 1/2" keeps its own, or it would read as 11/2."""
    return re.sub(r"(?<!\w) | (?!\w)", "", text)


def words(text: str) -> str:
    """For comparing as text: no quotes, no parentheses around a choice, no final stop; words in lower case."""
    plain = text.replace('"', "").strip().rstrip(".").strip()
    if re.fullmatch(r"\(\s*[A-Za-z]\s*\)", plain):
        plain = plain[1:-1].strip()
    return plain.casefold() if WORDS.fullmatch(plain) else compact(plain)


def _bare(text: str) -> str:
    text = text.strip().strip("*").strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    for left, right in MATH_DELIMITERS:
        inside = text[len(left) : -len(right)]
        if len(text) > len(left) + len(right) - 1 and text.startswith(left) and text.endswith(right):
            return inside.strip().removesuffix(".") if left.strip("$") or "$" not in inside.replace("\\$", "") else text
    return text


def _ascii(text: str) -> str:
    return "".join(map(_spell, _scripts(text)))


def _scripts(text: str) -> str:
    """Runs of superscript and subscript digits as ^{..} and _{..}: NFKC alone would read 5² as 52."""
    for digits, sign in (("⁰¹²³⁴⁵⁶⁷⁸⁹", "^"), ("₀₁₂₃₄₅₆₇₈₉", "_")):
        plain = str.maketrans(digits, "0123456789")
        text = re.sub(f"[{digits}]+", lambda run, s=sign, p=plain: f"{s}{{{run[0].translate(p)}}}", text)
    return text


def _spell(character: str) -> str:
    if character.isascii():
        return character
    if character in SIGNS:
        return SIGNS[character]
    if unicodedata.category(character) == "Cf":
        return character if character in BIDI else ""  # what turns the reading order must not vanish unseen
    kind, _, _ = unicodedata.decomposition(character).partition(" ")
    if kind == "<fraction>" and "⁄" in (parts := unicodedata.normalize("NFKC", character)):
        numerator, _, denominator = parts.partition("⁄")
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    if kind in ("<wide>", "<narrow>", "<font>", "<noBreak>", "<small>"):
        return unicodedata.normalize("NFKC", character)
    return " " if character.isspace() else character
