"""Files of the run folder: a reader, or a resumed run, finds the old file or the new one, never half of one.

One writer per run folder (the loop holds a lock on it), so the temporary name needs no process number and a leftover
of a killed run is overwritten by the next write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; on success it is flushed to disk and takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Writes UTF-8. Code points that UTF-8 cannot hold (lone surrogates in model text) are written as `\\udxxx`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json_atomic(path: Path, obj: Any) -> None:
    """Indented JSON. Raises ValueError on NaN and infinity, which JSON does not have."""
    write_text_atomic(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def fsync(path: Path) -> None:
    """Forces a file or the entries of a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
