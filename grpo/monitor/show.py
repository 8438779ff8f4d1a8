"""`grpo show RUN`: pages through the completions of a run, with the reward parts and verdicts of each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from grpo.errors import ConfigError
from grpo.monitor.completions import Row, completion_steps, read_completions
from grpo.monitor.text import visible

KEYS = "n/p completion  g/G group  ]/[ step  j/k scroll  w wrong  c correct  a all  / search  q quit"
FILTERS = {"w": "wrong", "c": "correct", "a": "all"}
_ARROWS = {"\x1b[A": "k", "\x1b[B": "j", "\x1b[C": "n", "\x1b[D": "p", "\x1b[6~": " ", "\x1b[5~": "b"}


def show(run_dir: Path, *, step: int | None, problem: str | None, limit: int | None, plain: bool) -> None:
    """Pages interactively on a terminal; prints and returns with `plain`, with `limit`, or into a pipe.

    step: the first one shown (default: the newest; printing: the only one). problem: only completions of this problem.
    limit: print at most so many. Raises ConfigError where there is nothing to show.
    """
    pager = Pager(run_dir, step, problem)
    if plain or limit is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        console = Console()
        for row in pager.rows[:limit]:
            console.print(render(row))
    else:
        _page(pager, Console())


class Pager:
    """Where the reader is: a step, a choice of its rows, a row, a line of it. `press` is the whole user interface.

    Raises ConfigError for a run without completions, a step that has none, or a problem that is not there.
    """

    def __init__(self, run_dir: Path, step: int | None = None, problem: str | None = None) -> None:
        self.run_dir = run_dir
        self.problem = problem
        self.steps = completion_steps(run_dir, problem)
        self.filter = "all"
        self.search = ""
        self.typing: str | None = None  # the search being typed
        self.load(self.steps[-1] if step is None else step)

    @property
    def row(self) -> Row | None:
        return self.rows[self.position] if self.rows else None

    def load(self, step: int) -> None:
        """Goes to the first completion of another step."""
        self.all_rows = read_completions(self.run_dir, step)
        self.step = step
        self.select()
        if self.problem is not None and not self.rows:
            raise ConfigError(f"step {step} has no problem {self.problem!r}; the steps that have it: {self.steps}")

    def select(self) -> None:
        """Applies problem, filter and search to the step's rows."""
        self.rows = [row for row in self.all_rows if self._wanted(row)]
        self.position = self.scroll = 0

    def press(self, key: str) -> bool:
        """Handles one key; False when the reader leaves."""
        if self.typing is not None:
            self._type(key)
        elif key in ("q", "\x03", "\x04"):
            return False
        elif key in FILTERS:
            self.filter = FILTERS[key]
            self.select()
        elif key == "/":
            self.typing = ""
        elif key in "][":
            index = self.steps.index(self.step) + (1 if key == "]" else -1)
            self.load(self.steps[max(0, min(index, len(self.steps) - 1))])
        elif key in _SCROLLS:
            self.scroll = max(0, self.scroll + _SCROLLS[key])
        elif self.rows:
            self._move(key)
        return True

    def _move(self, key: str) -> None:
        if key in "np":
            target = self.position + (1 if key == "n" else -1)
        elif key in "gG":
            target = self._group_start(forward=key == "g")
        else:
            return
        self.position, self.scroll = max(0, min(target, len(self.rows) - 1)), 0

    def _group_start(self, *, forward: bool) -> int:
        """The position of the first shown completion of the next or the previous problem."""
        groups = list(dict.fromkeys(row["problem_id"] for row in self.rows))
        here = groups.index(self.rows[self.position]["problem_id"])
        there = max(0, min(here + (1 if forward else -1), len(groups) - 1))
        return next(i for i, row in enumerate(self.rows) if row["problem_id"] == groups[there])

    def _type(self, key: str) -> None:
        assert self.typing is not None
        if key in ("\r", "\n"):
            self.search, self.typing = self.typing, None
            self.select()
        elif key in ("\x1b", "\x03"):
            self.typing = None
        elif key in ("\x7f", "\b"):
            self.typing = self.typing[:-1]
        elif key.isprintable():
            self.typing += key

    def _wanted(self, row: Row) -> bool:
        return (
            (self.problem is None or row["problem_id"] == self.problem)
            and (self.filter == "all" or row["correct"] is (self.filter == "correct"))
            and (self.search.lower() in f"{row['question']}\n{row['completion']}".lower())
        )


_SCROLLS = {"j": 1, "k": -1, " ": 15, "b": -15}


def render(row: Row) -> RenderableType:
    """One completion: where it belongs, its problem, its text, its scores. Model text is shown, never interpreted."""
    colour = {True: "green", False: "red", None: "yellow"}[row["correct"]]
    problem, task = visible(row["problem_id"]), visible(row["task"])
    title = Text(f"step {row['step']}  problem {problem}  sibling {row['sibling']}  task {task}")
    prompt = Text(visible(row["prompt"]), style="dim", overflow="fold")
    completion = Text(visible(row["completion"]), overflow="fold")
    completion.append(f" [{row['stop_reason']}, {row['length']} tokens]", style="dim italic")
    facts = Text.assemble(("gold answer ", "bold"), visible(row["answer"]))
    body = Group(prompt, Rule(style="dim"), completion, Rule(style="dim"), facts, _scores(row))
    return Panel(body, title=title, title_align="left", border_style=colour)


def _scores(row: Row) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("reward", "score", "verdict", "reason"):
        table.add_column(heading, justify="right" if heading == "score" else "left", overflow="fold")
    for name in _reward_names(row):
        verdict, reason = row.get(f"verdict/{name}"), row.get(f"reason/{name}")
        table.add_row(name, _number(row.get(f"reward/{name}")), verdict or "-", Text(visible(reason or "")))
    table.add_row("total", _number(row["reward"]), f"advantage {_number(row['advantage'])}", "", style="bold")
    for column, value in row.items():
        if column.startswith("extra/") and value is not None:
            table.add_row(Text(column), "", "", Text(visible(str(value))))
    return table


def _reward_names(row: Row) -> list[str]:
    prefixes = ("reward/", "verdict/", "reason/")
    return list(dict.fromkeys(c.split("/", 1)[1] for c in row if c.startswith(prefixes)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _page(pager: Pager, console: Console) -> None:
    """Draws, reads a key, draws again, on the terminal's second screen so that the scrollback stays as it was."""
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        with console.screen(hide_cursor=True) as screen:
            screen.update(_Screen(pager))
            for key in _keys(terminal):
                if not pager.press(_ARROWS.get(key, key)):
                    return
                screen.update(_Screen(pager))
    except KeyboardInterrupt:
        return
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _keys(terminal: int) -> Iterator[str]:
    while typed := os.read(terminal, 1024):
        yield from re.findall(r"\x1b\[[0-9;]*[A-Za-z~]|.", typed.decode(errors="ignore"), re.DOTALL)


class _Screen:
    """The visible part of the current completion, with a status line and the keys below."""

    def __init__(self, pager: Pager) -> None:
        self.pager = pager

    def __rich_console__(self, console: Console, options: object) -> Iterator[RenderableType]:
        pager = self.pager
        height = max(1, console.height - 2)
        lines = console.render_lines(render(pager.row) if pager.row else Text("no completion matches"), pad=False)
        pager.scroll = min(pager.scroll, max(0, len(lines) - height))
        shown: Sequence[list[Segment]] = lines[pager.scroll : pager.scroll + height]
        for line in shown:
            yield from (*line, Segment.line())
        yield from [Segment.line()] * (height - len(shown))
        yield Text(
            _status(pager, hidden=len(lines) - pager.scroll - len(shown)),
            style="bold",
            no_wrap=True,
            overflow="ellipsis",
        )
        yield Text(KEYS, style="dim", no_wrap=True, overflow="ellipsis", end="")


def _status(pager: Pager, hidden: int) -> str:
    if pager.typing is not None:
        return f"/{pager.typing}"
    where = f"step {pager.step} ({pager.steps.index(pager.step) + 1} of {len(pager.steps)})"
    place = f"completion {pager.position + 1 if pager.rows else 0} of {len(pager.rows)}"
    choice = pager.filter + (f", with {visible(pager.search)!r}" if pager.search else "")
    return f"{where}  {place}  [{choice}]" + (f"  {hidden} more lines" if hidden > 0 else "")
