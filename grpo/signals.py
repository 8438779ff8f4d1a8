"""SIGTERM and SIGINT ask a run to stop as soon as its state can be saved; the same one again ends it at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from torch import nn

from grpo.distributed import Dist

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Interrupted(Exception):
    """Somebody asked the run to stop, and what was going on is not worth finishing."""


@dataclass
class StopRequest:
    """Whether somebody asked the run to stop, which one process may know before the others.

    signum: 0 until then; the process's exit code is 128 + signum (143, 130). asked_at: `time.monotonic()`, seconds.
    newest: name of the newest checkpoint, for the person who asked.
    """

    dist: Dist = field(default_factory=Dist)
    signum: int = 0
    asked_at: float = 0.0
    newest: str = "none"

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.ask(signum)
        signal.signal(signum, signal.SIG_DFL)
        line = (
            f"\n{signal.Signals(signum).name}: the run stops as soon as its state is saved; the same signal again ends "
            f"it at once (newest checkpoint: {self.newest})\n"
        )
        with suppress(OSError):  # and not print, which could meet itself: a handler runs anywhere
            os.write(2, line.encode())

    def ask(self, signum: int) -> None:
        if not self.signum:
            self.signum, self.asked_at = signum, time.monotonic()

    @property
    def waited(self) -> float:
        """Seconds since this process learnt of the request."""
        return time.monotonic() - self.asked_at

    def agreed(self) -> bool:
        """Whether any process was asked, as all of them knew when they came here (collective)."""
        signum = self.dist.max_int(self.signum)
        if signum:
            self.ask(signum)
            self.signum = signum  # the same exit code everywhere
        return signum != 0

    def poll(self) -> None:
        """Raises Interrupted once somebody asked. Between forwards: where these are collective, so is the question;
        elsewhere this process leaves alone, and meets the others at the end of `left_together`."""
        if self.agreed() if self.dist.sharded else self.signum:
            raise Interrupted

    @contextmanager
    def left_together(self) -> Iterator[None]:
        """Work that `poll` cuts off. All processes leave it together: with what they made, or with Interrupted
        (collective). There may be no other collective inside but the model's own."""
        with suppress(Interrupted):
            yield
        if self.agreed():
            raise Interrupted

    @contextmanager
    def interruptible(self, model: nn.Module) -> Iterator[None]:
        """The same, cut off before the next forward of `model`, whoever calls it."""
        # First of all hooks: sharded parameters are gathered by one, and would stay whole.
        hook = model.register_forward_pre_hook(lambda *_: self.poll(), prepend=True)
        try:
            with self.left_together():
                yield
        finally:
            hook.remove()


@contextmanager
def stop_requests(dist: Dist) -> Iterator[StopRequest]:
    """Install the handlers for the length of a run. The handler only sets a flag and says so."""
    request = StopRequest(dist)
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
        signal.signal(signal.SIGRTMIN, lambda *_: request.ask(signal.SIGTERM))
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGRTMIN)
