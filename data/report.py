"""What loading gave: the problems, and an account of every row that did not become one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from data.problem import Problem

SHOWN_PLACES = 5


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """`place` is "line 7" or "row 7", counted from 1; `reason` is the same text for every row with the same fault."""

    place: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """rows_read = kept + bad rows + repeated + other_split + filtered; printing it gives a few lines for a person.

    repeated: rows removed because an earlier one asks the same. other_split: generated items that belong to the other
    side of the train/test split.
    """

    source: str
    split: str
    rows_read: int
    kept: int
    bad_rows: Sequence[BadRow] = ()
    repeated: int = 0
    other_split: int = 0
    filtered: int = 0
    filter_path: str | None = None

    @property
    def share_kept_by_filter(self) -> float:
        """Of the rows that the filter saw."""
        return self.kept / max(1, self.kept + self.filtered)

    def __str__(self) -> str:
        lines = [f"{self.source} ({self.split}): {self.rows_read} rows read, {self.kept} problems kept"]
        if self.repeated or self.other_split:
            lines.append(f"  {self.repeated} repeated, {self.other_split} on the other side of the train/test split")
        if self.filter_path:
            lines.append(f"  filter {self.filter_path} kept {self.share_kept_by_filter:.1%}, removed {self.filtered}")
        if self.bad_rows:
            lines += [f"  {len(self.bad_rows)} bad rows dropped:", describe(self.bad_rows)]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class LoadedProblems:
    """Problems in the order of their rows, and how they came about."""

    problems: list[Problem]
    report: LoadReport


def describe(bad_rows: Sequence[BadRow]) -> str:
    """One line per reason, the commonest first: how many rows, and the places of the first few."""
    places = defaultdict(list)
    for bad in bad_rows:
        places[bad.reason].append(bad.place)
    ranked = sorted(places.items(), key=lambda item: -len(item[1]))
    return "\n".join(f"    {len(where):6d}  {reason}: {_few(where)}" for reason, where in ranked)


def _few(places: Sequence[str]) -> str:
    more = ", ..." if len(places) > SHOWN_PLACES else ""
    return ", ".join(places[:SHOWN_PLACES]) + more
