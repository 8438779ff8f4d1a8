"""An engine inside the trainer: how it is started, what it is asked, and whose weights it has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.distributed import Dist
from grpo.errors import EndpointError
from tests.grpo import parts
from tests.grpo.test_vllm_sampler import build, config, gap, move, sample
from tests.grpo.vllm_engine import FakeEngine, install
from tests.grpo.vllm_server import FakeVllm, save_dense


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("models") / "dense")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    return install(monkeypatch)


def colocated(model: Path, **keys: Any) -> Any:
    return config(model, vllm_mode="colocate", **keys)


def test_every_round_samples_from_the_weights_of_its_own_time(
    model: Path, engines: list[FakeEngine], tmp_path: Path
) -> None:
    cfg = colocated(model, vllm_weights_dir=str(tmp_path))
    policy = parts.load(cfg)
    sampler = build(policy, cfg)
    for round_key in range(3):
        assert gap(policy, sample(sampler, round_key)) < 1e-5
        move(policy, round_key)
    [engine] = engines
    folders = [engine.settings["model"], *engine.fake.loads]
    assert len(set(folders)) == 3 and {Path(folder).parent for folder in folders} == {tmp_path}


def test_evaluations_sample_with_the_engine_of_training(model: Path, engines: list[FakeEngine]) -> None:
    policy = parts.load(colocated(model))
    for temperature in (1.0, 0.6):
        cfg = colocated(model, temperature=temperature)
        assert gap(policy, sample(build(policy, cfg)), temperature) < 1e-5
        move(policy)
    sample(build(parts.load(colocated(model)), colocated(model)))
    assert len(engines) == 2, "one for each policy"


def test_an_engine_with_other_weights_is_refused(model: Path, engines: list[FakeEngine]) -> None:
    policy = parts.load(colocated(model))
    sampler = build(policy, colocated(model))
    sample(sampler)
    move(policy)
    engines[0].fake.deaf = 1
    with pytest.raises(EndpointError, match="computes with other weights than the trainer's"):
        sample(sampler, 1)


def test_an_engine_is_asked_what_a_server_is(model: Path, engines: list[FakeEngine]) -> None:
    keys = {"stop_strings": ["<|im_end|>"], "min_completion_length": 2}
    with FakeVllm(model) as server:
        for cfg in (config(model, server, **keys), colocated(model, **keys)):
            sample(build(parts.load(cfg), cfg))
    [engine] = engines
    sent = [{**request} for request in server.completions]
    assert [request.pop("return_token_ids") for request in sent] == [True] * 3  # an engine always does
    by_seed = [sorted(asked, key=lambda request: request["seed"]) for asked in (sent, sampled(engine))]
    assert by_seed[0] == by_seed[1]


def sampled(engine: FakeEngine) -> list[dict[str, Any]]:
    """Its requests but for the probes."""
    return [request for request in engine.asked if request["temperature"]]


@pytest.mark.parametrize(("device", "ids"), [("cpu", None), ("cuda", None), ("cuda:1", [1])])
def test_an_engine_is_of_one_process_alone_and_on_its_device(
    model: Path, engines: list[FakeEngine], device: str, ids: list[int] | None
) -> None:
    policy = parts.load(colocated(model))
    sampler = build(policy, colocated(model))
    sampler.fleet.device = torch.device(device)
    sampler.fleet.dist = Other(world=2, text=None)
    sample(sampler)
    [engine] = engines
    assert engine.settings["device_ids"] == ids
    assert not engine.settings.keys() & {"distributed_executor_backend", "tensor_parallel_size", "data_parallel_size"}


@dataclass(frozen=True, kw_only=True)
class Other(Dist):
    """This process as the main one of two; `text` is what the other says."""

    text: str | None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.text]


def test_where_one_engine_does_not_start_no_process_goes_on(model: Path, engines: list[FakeEngine]) -> None:
    policy = parts.load(colocated(model))
    sampler = build(policy, colocated(model))
    sampler.fleet.dist = Other(world=2, text="OSError: no such folder")
    with pytest.raises(EndpointError, match=r"engine in process 1 .* OSError: no such folder.*vllm_weights_dir"):
        sample(sampler)
    sampler.fleet.dist, sampler.fleet.transport.root = Dist(), Path("/nowhere")
    with pytest.raises(EndpointError, match=r"engine in process 0 did not take .* /nowhere"):
        sampler.fleet.engine = None
        sampler.fleet.load()
