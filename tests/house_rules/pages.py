"""The pages of the documentation, and what stands between their fences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from grpo import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md", "rewards/README.md")
NOT_RUN = re.compile(r"<!-- not run in tests: .+ -->\n```bash\n(?s:.*?)^```$", re.MULTILINE)
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_blocks(text: str) -> list[list[str]]:
    """The lines of each bash block but those under `<!-- not run in tests: reason -->`."""
    found = [block.replace("\\\n", "").splitlines() for block in blocks(NOT_RUN.sub("", text), "bash")]
    return [[line for line in block if line] for block in found]


def entry_point(words: list[str]) -> tuple[Callable[[list[str]], int], list[str]]:
    """The `main` that a command line calls, and its arguments. One process is started the same by both launchers."""
    if "-m" in words:
        at = words.index("-m") + 1
        return import_module(words[at]).main, words[at + 1 :]
    assert words[0].rpartition("/")[2] == "grpo", (
        f"nothing here can run {shlex.join(words)!r}: name its test in ELSEWHERE"
    )
    return cli.main, words[1:]


def run_page(text: str) -> int:
    """Every command of a page as it stands, one after the other, in this folder; how many there were."""
    commands = [command for block in command_blocks(text) for command in block]
    for command in commands:
        main, argv = entry_point(shlex.split(command))
        assert main(argv) == 0, command
    return len(commands)
