"""SIGTERM and SIGINT to real runs: the rollout is finished and saved, the exit code says so, nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.checkpoint.store import find_checkpoints
from grpo.monitor.metrics import read_metrics
from grpo.signals import StopRequest, stop_requests
from tests.grpo.resume_process import Workers, log_of
from tests.grpo.tiny_runs import LORA, differences, settings

TERM, INT = signal.SIGTERM, signal.SIGINT

# where the signal arrives -> the call of which function it precedes, and the update that is saved last
PHASES = {
    "start": ("grpo.loop:load_data", 1, None),
    "evaluation at start": ("grpo.loop:evaluate", 1, None),
    "sampling": ("grpo.sampling.reference:ReferenceSampler._generate", 4, 4),
    "backward": ("grpo.distributed:Dist.backward", 3, 4),
    "evaluation": ("grpo.loop:evaluate", 2, 2),
    "save": ("grpo.checkpoint.store:seal", 1, 4),
    "last update": ("grpo.loop:Training.log", 8, 8),
}
# The evaluation after the last update is made up for when there is nothing left to save.
AFTER_THE_LAST_SAVE = {"state", "trainer_state/rng.safetensors"}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


@pytest.fixture(scope="module")
def whole(workers: Workers, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    assert workers.run(settings(tiny_model, run_dir, **LORA)) == 0
    return run_dir


@pytest.mark.normal
@pytest.mark.parametrize("phase", PHASES)
def test_sigterm_saves_and_the_resumed_run_is_the_uninterrupted_one(
    workers: Workers, whole: Path, tiny_model: Path, tmp_path: Path, phase: str
) -> None:
    place, call, saved = PHASES[phase]
    cut = tmp_path / "cut"
    keys = settings(tiny_model, cut, **LORA)
    assert workers.run(keys, at=place, call=call, send=[TERM]) == 143
    assert [path.name for path in find_checkpoints(cut)[:1]] == ([f"step-{saved:08d}"] if saved else [])
    assert not (cut / "final").exists()
    said = log_of(cut).read_text()
    assert "SIGTERM: this rollout is finished and saved first" in said
    assert f"stopped by SIGTERM after update {saved or 0}" in said
    assert workers.run(keys) == 0
    assert differences(whole, cut) == (AFTER_THE_LAST_SAVE if phase == "last update" else set())


@pytest.mark.normal
def test_sigint_exits_130_and_signals_of_both_kinds_are_one_request(
    workers: Workers, whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    keys = settings(tiny_model, cut, **LORA)
    assert workers.run(keys, at="grpo.loop:Training.log", call=3, send=[INT, TERM]) == 130
    assert [path.name for path in find_checkpoints(cut)[:1]] == ["step-00000004"]
    assert workers.run(keys) == 0
    assert differences(whole, cut) == set()


@pytest.mark.normal
@pytest.mark.parametrize("signum", [TERM, INT])
def test_a_second_signal_ends_the_run_at_once(
    workers: Workers, whole: Path, tiny_model: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    cut = tmp_path / "cut"
    keys = settings(tiny_model, cut, **LORA)
    assert workers.run(keys, at="grpo.loop:Training.log", call=3, send=[signum, signum]) == -signum
    assert [path.name for path in find_checkpoints(cut)] == ["step-00000002"], "nothing was saved any more"
    assert [line["step"] for line in read_metrics(cut) if "loss" in line] == [1, 2]
    assert workers.run(keys) == 0
    assert differences(whole, cut) == set()


@pytest.mark.normal
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_update(
    workers: Workers, tiny_model: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    keys = settings(tiny_model, run_dir, **LORA)
    assert workers.run(keys, world=2, at="grpo.loop:Training.log", call=3, send=[TERM], rank=1) == [143, 143]
    assert [path.name for path in find_checkpoints(run_dir)[:1]] == ["step-00000004"]
    assert log_of(run_dir).read_text().count("stopped by SIGTERM after update 4") == 1


def test_the_handlers_are_taken_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(signum) for signum in (TERM, INT)]
    with stop_requests() as request:
        assert request == StopRequest(signum=0)
        os.kill(os.getpid(), INT)
        assert request.signum == INT
        assert signal.getsignal(INT) == signal.SIG_DFL
        os.kill(os.getpid(), TERM)
        assert request.signum == INT, "the first signal decides the exit code"
    assert [signal.getsignal(signum) for signum in (TERM, INT)] == before
    assert capfd.readouterr().err.count("this rollout is finished and saved first") == 2
