"""One hash for a list of problems, so that a checkpoint can tell whether it is resumed on the data it was made on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields

from data.problem import Problem


def fingerprint(problems: Iterable[Problem]) -> str:
    """sha256 (64 hex digits) over every field of every problem, in order. Values JSON lacks enter as their `str`."""
    digest = hashlib.sha256()
    for problem in problems:
        values = {field.name: getattr(problem, field.name) for field in fields(problem)}
        digest.update(json.dumps(values, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
