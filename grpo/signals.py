"""SIGTERM and SIGINT ask a run to stop at the next step edge; a second one ends it at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """`signum` is 0 until somebody asked; the process's exit code is then 128 + signum (143, 130)."""

    signum: int = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.default_int_handler)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Install the handlers for the length of a run. The handler only sets a flag; nothing is done inside it."""
    request = StopRequest()
    previous = {signum: signal.signal(signum, request) for signum in STOP_SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
