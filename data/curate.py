"""What must not be in a training set: questions of a benchmark, and the same row twice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Signs of scripts without spaces count one by one, as do operators: 4 + 5 is another question than 4 - 5.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[+*/=<>^×÷]|-(?=\s*\d)"
)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """`ngram`: the words, normalised, that a text shares with the question `item` of a benchmark."""

    item: str
    ngram: str


class NgramIndex:
    """Every n words in a row of a benchmark's questions; of a shorter question, all its words.

    n = 10 is DeepSeek-R1's rule (arXiv 2501.12948v2, appendix D.1). `texts`: (name of the item, its question), read
    once.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], n: int = 10) -> None:
        self.n, self.items, self.short = n, {}, {}
        for item, text in texts:
            found = list(words(text))
            for ngram in _ngrams(found, n):
                self.items.setdefault(ngram, item)
            if 0 < len(found) < n:
                self.short.setdefault(" ".join(found), item)


def contaminated(text: str, index: NgramIndex) -> Overlap | None:
    """The first n-gram of `text` that a question of the index has too, or a short question that `text` is, word for
    word; None where there is none."""
    found = list(words(text))
    ngrams = _ngrams(found, index.n)
    shared = next((ngram for ngram in ngrams if ngram in index.items), None)
    if shared is not None:
        return Overlap(item=index.items[shared], ngram=shared)
    whole = " ".join(found)
    return Overlap(item=index.short[whole], ngram=whole) if whole in index.short else None


class Seen:
    """Remembers texts by their words (16 bytes each), so that a copy with other spaces, case or punctuation is known
    as one."""

    def __init__(self) -> None:
        self.digests: set[bytes] = set()

    def add(self, *texts: str) -> bool:
        """Whether these texts, taken together, are new."""
        digest = _digest(texts)
        new = digest not in self.digests
        self.digests.add(digest)
        return new

    def forget(self, *texts: str) -> None:
        """As if these texts had not been added."""
        self.digests.remove(_digest(texts))


def _digest(texts: Iterable[str]) -> bytes:
    text = "\0".join(" ".join(words(text)) for text in texts)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def words(text: str) -> Iterator[str]:
    """The words of a text as they are compared: lower case, without punctuation."""
    return (match[0] for match in WORD.finditer(text.lower()))


def _ngrams(found: list[str], n: int) -> Iterator[str]:
    return (" ".join(found[start : start + n]) for start in range(len(found) - n + 1))
