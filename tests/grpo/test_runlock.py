"""One run per folder, with real second processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from grpo.checkpoint.runlock import RunLock, process_is_alive
from grpo.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
HOLD = r"""
import os, sys, time
from pathlib import Path
from grpo.checkpoint.runlock import RunLock
with RunLock(Path(sys.argv[1])):
    if "fork" in sys.argv and not (child := os.fork()):
        os.write(1, b"%d\n" % os.getpid())
        time.sleep(60)
        os._exit(0)
    os.write(1, b"locked\n")
    sys.stdin.readline()
"""
TRY = """
import sys
from pathlib import Path
from grpo.errors import ConfigError
from grpo.checkpoint.runlock import RunLock
try:
    with RunLock(Path(sys.argv[1])):
        print("locked")
except ConfigError as error:
    print(error)
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another process that holds the lock of `tmp_path` until a line comes on its stdin."""
    holders: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), *arguments]
        pipe = subprocess.PIPE
        holders.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True))
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def read_line(holder: subprocess.Popen[str]) -> str:
    assert holder.stdout
    return holder.stdout.readline().strip()


def attempt(run_dir: Path) -> str:
    command = [sys.executable, "-c", TRY, str(run_dir)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_second_process_is_refused_and_told_by_whom(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder = hold()
    assert read_line(holder) == "locked"
    with pytest.raises(ConfigError) as caught, RunLock(tmp_path):
        pass
    text = str(caught.value)
    assert f"{tmp_path} is in use by pid {holder.pid} on {socket.gethostname()}, started 20" in text
    assert "stop it" in text and "another output_dir" in text


def test_lock_is_free_after_an_orderly_exit(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], caplog: pytest.LogCaptureFixture
) -> None:
    holder = hold()
    assert read_line(holder) == "locked"
    holder.communicate("\n")
    with RunLock(tmp_path):
        pass
    assert caplog.text == ""


def test_lock_is_free_after_sigkill(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]], caplog: pytest.LogCaptureFixture
) -> None:
    holder = hold()
    assert read_line(holder) == "locked"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert re.search(rf"left behind by pid {holder.pid} on .* ended without leaving: taken over", caplog.text)


def test_lock_of_a_stopped_process_is_held(tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]) -> None:
    holder = hold()
    assert read_line(holder) == "locked"
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(ConfigError, match=f"pid {holder.pid} "), RunLock(tmp_path):
        pass


def test_forked_child_that_outlives_the_holder_does_not_keep_it(
    tmp_path: Path, hold: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = hold("fork")
    lines = [read_line(holder), read_line(holder)]
    child = int(next(line for line in lines if line != "locked"))
    try:
        with pytest.raises(ConfigError), RunLock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert process_is_alive(child)
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_forked_child_that_leaves_the_block_does_not_release_it(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with lock:
        if (child := os.fork()) == 0:
            try:
                lock.__exit__(None, None, None)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert f"is in use by pid {os.getpid()}" in attempt(tmp_path)
    assert attempt(tmp_path) == "locked"


def test_refusal_leaves_no_open_file(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        before = os.listdir("/proc/self/fd")
        with pytest.raises(ConfigError), RunLock(tmp_path):
            pass
        assert os.listdir("/proc/self/fd") == before


def test_lock_of_an_earlier_boot_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The number in it may belong to a living process by now: the number of this one, for instance."""
    old = {"pid": os.getpid(), "host": "node-7", "boot_id": "another", "started": "2025-01-20T00:00:00+00:00"}
    (tmp_path / ".lock").write_text(json.dumps(old))
    with RunLock(tmp_path):
        pass
    assert "left behind by" in caplog.text and "node-7" in caplog.text and "before the last restart" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "5", "\x00" * 100])
def test_unreadable_note_does_not_matter(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    with RunLock(tmp_path):
        (tmp_path / ".lock").write_text(text)
        with pytest.raises(ConfigError, match="in use by another run"), RunLock(tmp_path):
            pass


def test_exception_releases_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    assert attempt(tmp_path) == "locked"


def test_same_process_may_not_take_it_twice(tmp_path: Path) -> None:
    with RunLock(tmp_path / "new" / "run"):
        with pytest.raises(ConfigError, match=f"pid {os.getpid()}"), RunLock(tmp_path / "new" / "run"):
            pass
        assert "is in use by" in attempt(tmp_path / "new" / "run")


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    """Processes that start at once, each holding on until the count is in."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    crowd = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, cwd=ROOT, text=True)
        for _ in range(8)
    ]
    deadline = time.monotonic() + 60
    while sum(process.poll() is None for process in crowd) > 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    outputs = [process.communicate("\n")[0] for process in crowd]
    assert sorted(outputs) == [""] * 7 + ["locked\n"]
    assert sorted(process.returncode for process in crowd) == [0] + [1] * 7


def test_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(ConfigError, match=r"cannot be locked \(.*not supported\).*put output_dir on another"):
        RunLock(tmp_path).__enter__()
