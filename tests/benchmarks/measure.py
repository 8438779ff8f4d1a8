"""Seconds and spreads; seconds, peak memory and what came out of one training step."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import torch

MB = 1e6
PHASES = ("sampling", "scoring", "update", "step")


def timed(once: Callable[[], object], device: torch.device, *, times: int = 1) -> float:
    """Seconds of the wall clock, from an idle device to an idle device; the mean of `times` in a row."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(times):
        once()
    wait()
    return (time.perf_counter() - start) / times


def spread(values: list[float]) -> list[float]:
    """[least, median, most]"""
    return [min(values), statistics.median(values), max(values)]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a trainer: optimizer steps in it, tokens sampled, rewards of all rows (sorted).

    seconds: wall clock of sampling, scoring, update (all the rest) and the whole step. cpu: CPU seconds of the process.
    peak_mb: the most memory held on top of what was there before, helper processes included.
    """

    updates: int
    tokens: int
    rewards: list[float]
    seconds: Mapping[str, float]
    cpu: float
    peak_mb: float


class Meter:
    """Started before a step and stopped after it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier steps have freed is not there before this one
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
            self.before = _kilobytes("VmRSS") * 1024
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self, phases: Mapping[str, float], *, updates: int, tokens: int, rewards: list[float]) -> Step:
        """`phases`: seconds of sampling and of scoring."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        seconds = {**phases, "update": wall - sum(phases.values()), "step": wall}
        peak = (self._peak() - self.before) / MB
        return Step(updates=updates, tokens=tokens, rewards=sorted(rewards), seconds=seconds, cpu=cpu, peak_mb=peak)

    def _peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        helpers = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
        return _kilobytes("VmHWM") * 1024 + helpers


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
