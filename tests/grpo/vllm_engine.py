"""A stand-in for the module `vllm` that computes: what the trainer asks of an engine of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.grpo.vllm_server import FakeVllm


class FakeEngine:
    """What the server of vllm_server.py computes, without HTTP. settings: of its start. asked: of each request."""

    started: ClassVar[list[FakeEngine]] = []

    def __init__(self, model: str, **settings: Any) -> None:
        self.fake = FakeVllm(Path(model))
        self.fake.stop()
        self.settings, self.asked = {"model": model, **settings}, []
        self.started.append(self)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights"
        status, body = self.fake.answer("/collective_rpc", {"kwargs": kwargs})
        if status != 200:
            raise RuntimeError(body)

    def reset_prefix_cache(self) -> None:
        self.fake.answer("/reset_prefix_cache", {})

    def generate(self, prompts: list[dict[str, Any]], settings: list[Any], use_tqdm: bool) -> list[Any]:
        bodies = [
            {**vars(one), "prompt": list(p["prompt_token_ids"])} for p, one in zip(prompts, settings, strict=True)
        ]
        self.asked += bodies
        return [SimpleNamespace(outputs=self._outputs(body)) for body in bodies]

    def _outputs(self, body: dict[str, Any]) -> list[Any]:
        _, answer = self.fake.answer("/v1/completions", body)
        return [
            SimpleNamespace(
                token_ids=choice["token_ids"],
                logprobs=[
                    {token: SimpleNamespace(logprob=logprob)}
                    for token, logprob in zip(choice["token_ids"], choice["logprobs"]["token_logprobs"], strict=True)
                ],
                finish_reason=choice["finish_reason"],
            )
            for choice in answer["choices"]
        ]


def install(monkeypatch: pytest.MonkeyPatch) -> list[FakeEngine]:
    """`from vllm import LLM` gives the stand-in; returns the engines that are started."""
    monkeypatch.setattr(FakeEngine, "started", [])
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeEngine, SamplingParams=SimpleNamespace))
    return FakeEngine.started
