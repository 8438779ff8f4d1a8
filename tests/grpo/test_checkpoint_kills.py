"""SIGKILL at random moments: the newest checkpoint loads every time, and most kills do fall inside a save."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from grpo.checkpoint.store import clean_leftovers, find_checkpoints, open_checkpoint
from grpo.errors import CheckpointError
from tests.grpo.saving_process import content, state

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Victim:
    """Starts saving children and kills them, aiming inside a save.

    saves: the seconds that saves were seen to take; on a busy machine a beginning is seen late, and the save seems to
    take no time at all.
    """

    process: subprocess.Popen[str]
    events: int
    random: random.Random = field(default_factory=lambda: random.Random(0))
    saves: list[float] = field(default_factory=list)

    def start(self, **order: object) -> int:
        """The pid of a new child."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        """What ended the child: minus a signal's number, or its exit status."""
        assert self.process.stdout
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def kill_one(self, run_dir: Path, first_step: int, in_place: bool = False) -> str:
        """The child's events (B before a save, E after it); ends with B when the kill fell inside a save."""
        pid = self.start(run_dir=str(run_dir), first_step=first_step, in_place=in_place)
        seen = self._watch_saves(1 + self.random.randrange(3))
        short = sorted(self.saves)[len(self.saves) // 4]
        time.sleep(self.random.uniform(0, short))
        os.kill(pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL
        return seen + self.remaining_events()

    def remaining_events(self) -> str:
        seen = ""
        while select.select([self.events], [], [], 0)[0]:
            seen += os.read(self.events, 1).decode()
        return seen

    def _watch_saves(self, finished: int) -> str:
        """Lets some saves finish, timing them, and returns at the start of the next."""
        seen, began = "", 0.0
        while seen.count("E") < finished or not seen.endswith("B"):
            assert select.select([self.events], [], [], 60)[0], f"the child reported nothing for 60 s after {seen!r}"
            seen += os.read(self.events, 1).decode()
            if seen.endswith("B"):
                began = time.perf_counter()
            else:
                self.saves.append(time.perf_counter() - began)
        return seen


@pytest.fixture
def victim() -> Iterator[Victim]:
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.grpo.saving_process", str(write_end)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[write_end],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    os.close(write_end)
    yield Victim(process, read_end)
    process.communicate()
    os.close(read_end)


def assert_is_content_of(run_dir: Path, allowed: set[int]) -> int:
    """The newest folder opens as it is, without falling back, and holds what was saved at its step."""
    checkpoint = open_checkpoint(find_checkpoints(run_dir)[0])
    assert checkpoint.step in allowed
    assert checkpoint.state == state(checkpoint.step)
    assert (checkpoint.path / "model.safetensors").read_bytes() == bytes([checkpoint.step % 256]) * 1_000_000
    for name, seed in (("optimizer", 1), ("reference", 2)):
        expected, loaded = content(checkpoint.step, seed), checkpoint.tensors(name)
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    return checkpoint.step


def kill_repeatedly(victim: Victim, run_dir: Path, kills: int) -> tuple[int, int]:
    """How many kills fell inside a save, and how many left a half-written folder behind."""
    inside, half_written, newest = 0, 0, 0
    for _ in range(kills):
        first = newest + 1
        seen = victim.kill_one(run_dir, first)
        half_written += any((run_dir / "checkpoints").glob(".tmp-step-*"))
        inside += seen.endswith("B")
        last_finished = first + seen.count("E") - 1
        newest = assert_is_content_of(run_dir, {last_finished, last_finished + seen.endswith("B")})
    return inside, half_written


@pytest.mark.normal
def test_5_kills(victim: Victim, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, half_written = kill_repeatedly(victim, tmp_path, 5)
    with capsys.disabled():
        print(f"\n5 kills, {inside} inside a save ({half_written} left a half-written folder), 0 unloadable")
    assert inside >= 3


@pytest.mark.slow
def test_50_kills(victim: Victim, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside, half_written = kill_repeatedly(victim, tmp_path, 50)
    with capsys.disabled():
        print(f"\n50 kills, {inside} inside a save ({half_written} left a half-written folder), 0 unloadable")
    assert inside >= 40


@pytest.mark.normal
def test_a_kill_at_every_fsync_and_rename(victim: Victim, tmp_path: Path) -> None:
    """Random kills seldom meet the instants around the rename; these do, one after the other."""
    steps_found = []
    for call in range(100):
        run_dir = tmp_path / str(call)
        victim.start(run_dir=str(run_dir), first_step=1, die_at_call=1000)
        assert victim.wait() == 0
        victim.start(run_dir=str(run_dir), first_step=2, die_at_call=call)
        killed = victim.wait() == -signal.SIGKILL
        steps_found.append(assert_is_content_of(run_dir, {1, 2} if killed else {2}))
        if not killed:
            break
    # fsync of the run folder, 5 files, 2 directories, then the rename; the one kill after it finds the new step.
    assert steps_found == [1] * 9 + [2, 2]
    assert victim.remaining_events() == "BE" + "BBE" * 10 + "BE"


@pytest.mark.normal
def test_a_kill_at_every_fsync_and_rename_of_a_replacement(victim: Victim, tmp_path: Path) -> None:
    """The only checkpoint is saved again under its own step; between the two renames it is nowhere but aside."""
    aside = 0
    for call in range(100):
        run_dir = tmp_path / str(call)
        victim.start(run_dir=str(run_dir), first_step=1, die_at_call=1000)
        assert victim.wait() == 0
        victim.start(run_dir=str(run_dir), first_step=1, die_at_call=call, replace=True)
        killed = victim.wait() == -signal.SIGKILL
        aside += not find_checkpoints(run_dir)
        clean_leftovers(run_dir)
        assert assert_is_content_of(run_dir, {1}) == 1
        assert len(list((run_dir / "checkpoints").iterdir())) == 1
        if not killed:
            break
    assert aside == 1


@pytest.mark.normal
def test_the_kills_would_find_a_save_in_place(victim: Victim, tmp_path: Path) -> None:
    torn = 0
    for attempt in range(8):
        run_dir = tmp_path / str(attempt)
        victim.kill_one(run_dir, 1, in_place=True)
        try:
            open_checkpoint(find_checkpoints(run_dir)[0])
        except CheckpointError:
            torn += 1
    assert torn >= 1
