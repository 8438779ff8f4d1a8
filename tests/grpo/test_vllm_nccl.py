"""Weights over nccl, as far as no GPU is needed: what becomes of a client of TRL's that hangs or raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.generation.vllm_client

from grpo.sampling.vllm.server import Server
from grpo.sampling.vllm.transfer import NcclTransport
from rewards.remote import RemoteError
from tests.grpo import parts
from tests.grpo.test_vllm_sampler import build, config, gap, sample
from tests.grpo.vllm_server import FakeVllm, save_dense

Fault = Callable[[], None]


def client(fault: Fault, base: str = "") -> type:
    """A stand-in for TRL's client that joins no group; `fault` happens where an address begins with `base`."""

    class Client:
        def __init__(self, base_url: str, **_: Any) -> None:
            self.url = base_url

        def init_communicator(self, device: torch.device) -> None:
            if self.url.startswith(base):
                fault()

        def update_named_params(self, described: Any, weights: Any) -> None:
            return

        def close_communicator(self) -> None:
            return

    return Client


def raising(error: Exception) -> Fault:
    def fault() -> None:
        raise error

    return fault


def transport() -> NcclTransport:
    transport = NcclTransport(51216, torch.device("cuda"))
    transport.named = {"weight": torch.zeros(1)}
    return transport


# What TRL's client raises: for an answer that is no 200, for a server without a transfer engine, for one that is away.
@pytest.mark.parametrize("error", [Exception("status 500"), RuntimeError("no engine"), ConnectionError("away")])
def test_what_the_client_raises_is_the_fault_of_one_server(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(trl.generation.vllm_client, "VLLMClient", client(raising(error)))
    with pytest.raises(RemoteError, match=f"http://gone over nccl: {type(error).__name__}: {error}"):
        transport().send(Server("http://gone", seconds=60), "new")


def test_a_client_that_hangs_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    monkeypatch.setattr(trl.generation.vllm_client, "VLLMClient", client(lambda: forever.wait(30)))
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"not done within 0.2 s \(vllm_request_timeout\)"):
        transport().send(Server("http://gone", seconds=0.2), "new")
    assert time.monotonic() - began < 10
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "vllm")  # none keeps us from ending
    forever.set()


def test_one_bad_server_of_two_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = save_dense(tmp_path / "dense")
    with FakeVllm(model) as good, FakeVllm(model) as bad:
        monkeypatch.setattr(trl.generation.vllm_client, "VLLMClient", client(raising(Exception("status 500")), bad.url))
        cfg = config(model, good, bad)
        policy = parts.load(cfg)
        sampler = build(policy, cfg)
        sampler.fleet.transport = NcclTransport(51216, torch.device("cuda"))
        assert gap(policy, sample(sampler)) < 1e-5  # the policy's weights are those that the servers started with
        assert len(good.completions) == 3 and not bad.completions
