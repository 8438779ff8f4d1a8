"""What `-h` and `--help_all` print, read from the config dataclasses themselves."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from grpo.config.coerce import describe

_COMMENT = re.compile(r"^    (\w+): .*?  # (.*)$", re.MULTILINE)


def answer_help(argv: Sequence[str], root: type) -> None:
    """Prints the help that was asked for and exits with status 0; returns when none was."""
    if "--help_all" in argv or "--help-all" in argv:
        print(full_help(root))
    elif "-h" in argv or "--help" in argv:
        print(short_help(root))
    else:
        return
    sys.exit(0)


def short_help(root: type) -> str:
    """One screen: how keys are given, which are required, and the names of all, by owner."""
    lines = [
        "--config FILE.yaml reads the keys below; any of them is also a flag, and the flag wins:",
        "    --learning_rate 1e-4   --reward_funcs accuracy format   --log_completions   --beta=0.001",
        "--dry_run shows what a run would do without doing it; --help_all explains every key.",
    ]
    for owner, _, members in _owners(root):
        names = [f"{f.name}*" if _required(f) else f.name for f in members]
        lines.append(textwrap.fill(f"{owner}: {' '.join(names)}", 118, subsequent_indent="    "))
    return "\n".join([*lines, "* required"])


def full_help(root: type) -> str:
    """Every key by owner: type, default, and the comment that stands beside it in the source."""
    blocks = []
    for owner, kind, members in _owners(root):
        about = " ".join((kind.__doc__ or "").split())
        comments = dict(_COMMENT.findall(inspect.getsource(kind)))
        types = get_type_hints(kind)
        rows = [_row(f, types[f.name], comments.get(f.name, "")) for f in members]
        blocks.append("\n".join([textwrap.fill(f"{owner}: {about}", 118), *rows]))
    return "\n\n".join(blocks)


def _owners(root: type) -> Iterator[tuple[str, Any, list[Field[Any]]]]:
    """Owner's name, its class, its keys; the root's own plain keys come last, under `run`."""
    kinds = get_type_hints(root)
    for name, kind in kinds.items():
        if is_dataclass(kind):
            yield name, kind, list(fields(kind))
    plain = [f for f in fields(root) if not is_dataclass(kinds[f.name])]
    if plain:
        yield "run", root, plain


def _row(field: Field[Any], kind: Any, comment: str) -> str:
    factory = field.default_factory
    default = "required" if _required(field) else repr(field.default if factory is MISSING else factory())
    return f"  --{field.name:<28} {describe(kind)} [{default}]" + (f"  {comment}" if comment else "")


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
