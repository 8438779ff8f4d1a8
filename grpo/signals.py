"""SIGTERM and SIGINT ask a run to stop at the next rollout boundary; the same one again ends it at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass
class StopRequest:
    """`signum` is 0 until somebody asked; the process's exit code is then 128 + signum (143, 130)."""

    signum: int = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.signum = self.signum or signum
        signal.signal(signum, signal.SIG_DFL)
        name = signal.Signals(signum).name
        line = f"\n{name}: this rollout is finished and saved first; the same signal again ends the run at once\n"
        with suppress(OSError):  # and not print, which could meet itself: a handler runs anywhere
            os.write(2, line.encode())

    def launcher_died(self) -> None:
        self.signum = self.signum or signal.SIGTERM


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Install the handlers for the length of a run. The handler only sets a flag and says so."""
    request = StopRequest()
    previous = {signum: signal.signal(signum, request) for signum in STOP_SIGNALS}
    stop_with_launcher(request)
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def stop_with_launcher(request: StopRequest) -> None:
    """On Linux the death of the launcher is a request too: `accelerate launch` of one process passes no signal on, and
    one that was killed leaves its processes behind, at work and holding the run folder."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        # Not SIGTERM: the kernel tells of every thread of the launcher, and a second SIGTERM would end the run at once.
        signal.signal(signal.SIGRTMIN, lambda *_: request.launcher_died())
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGRTMIN)
