"""Functions that a YAML file names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from data.problem import DataError


def named_function(path: str, *, key: str) -> Callable[[Any], Any]:
    """The function that `package.module:function` names; `key` is where it stands. Raises `DataError` when there is
    none."""
    module, _, function = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"{key} {path!r} is not package.module:function ({error})") from error
    if not callable(found):
        raise DataError(f"{key} {path!r} is not package.module:function but a {type(found).__name__}")
    return found
