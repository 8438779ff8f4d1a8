"""Model text on its way to a file, a terminal or a page: it may hold anything."""

from __future__ import annotations

# Control characters as the pictures Unicode has for them; tab and newline stay. An escape sequence sampled by a model
# must not reach a terminal.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_VISIBLE = _PICTURES | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def storable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (lone surrogates) spelled out, for example as `\\ud800`."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    """`text` as it may be shown: storable, and every control character but tab and newline replaced by a picture."""
    return storable(text).translate(_VISIBLE)
