"""vLLM inside every process, beside the trainer on its GPU: an engine of its own in place of servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from grpo.config import SamplingConfig
from grpo.distributed import Dist
from grpo.errors import EndpointError
from grpo.policy.load import Policy
from grpo.sampling.vllm.probe import GREEDY, Probe, tolerance
from grpo.sampling.vllm.server import AS_TOKENS, Sample
from grpo.sampling.vllm.transfer import DiskTransport, weights_root

_engines: WeakKeyDictionary[nn.Module, Colocated] = WeakKeyDictionary()


def colocated(policy: Policy, cfg: SamplingConfig, dist: Dist) -> Colocated:
    """One for a policy, however many samplers ask: training's and each evaluation's (collective)."""
    if policy.model not in _engines:
        _engines[policy.model] = Colocated(policy, cfg, dist)
    return _engines[policy.model]


class Colocated:
    """What `grpo.sampling.vllm.fleet.Fleet` is to servers. The engine starts with the first weights that it is to hold,
    and takes the later ones from the same folder."""

    def __init__(self, policy: Policy, cfg: SamplingConfig, dist: Dist) -> None:
        self.cfg, self.dist, self.device = cfg, dist, policy.device
        self.dtype = str(policy.compute_dtype).removeprefix("torch.")
        self.tolerance = cfg.vllm.vllm_probe_tolerance or tolerance(policy, self.dtype)
        self.context = cfg.vllm.vllm_max_model_length or policy.network.config.max_position_embeddings
        self.transport = DiskTransport(weights_root(cfg.vllm, dist))
        self.version = self.held = ""
        self.probe: Probe | None = None
        self.engine: Any = None

    def load(self) -> None:
        """Bring every process's engine to `version` (collective). All raise EndpointError where one cannot be."""
        failure = None
        try:
            self._load()
        except Exception as error:
            failure = error
        for rank, text in enumerate(self.dist.gather(failure and f"{type(failure).__name__}: {failure}")):
            if text is not None:
                raise EndpointError(
                    f"the vLLM engine in process {rank} did not take the weights: {text}; every process must see "
                    f"{self.transport.root} (vllm_weights_dir) under this path"
                ) from failure

    def continuation(self, prompt_ids: Sequence[int], max_tokens: int) -> tuple[int, ...]:
        return self._greedy(prompt_ids, max_tokens).token_ids

    def answers(self, requests: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[int, list[Sample]]]:
        """All of them, at the end. Raises EndpointError where the engine holds other weights than the trainer."""
        assert self.probe is not None
        gap = self.probe.gap(self._greedy(self.probe.prompt_ids, len(self.probe.token_ids)))
        if gap > self.tolerance:
            raise EndpointError(
                f"the vLLM engine in this process computes with other weights than the trainer's: log-probabilities of "
                f"greedy tokens differ by {gap:.2g} nats, where {self.tolerance:g} is allowed (vllm_probe_tolerance)"
            )
        yield from zip(requests, self._generate(list(requests.values())), strict=True)

    def _load(self) -> None:
        folder = str(self.transport.folder(self.version))
        if self.engine is None:
            self.engine = self._started(folder)
        elif self.held != self.version:
            self.engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            self.engine.reset_prefix_cache()
        self.held = self.version

    def _started(self, folder: str) -> Any:
        from vllm import LLM

        # vLLM spawns a process for the engine, so that it is no member of the trainer's process group: engines know
        # nothing of each other, and must be told which GPU is theirs.
        return LLM(
            model=folder,
            dtype=self.dtype,
            device_ids=None if self.device.index is None else [self.device.index],
            gpu_memory_utilization=self.cfg.vllm.vllm_gpu_memory_utilization,
            max_model_len=self.context,
            logprobs_mode="processed_logprobs",
        )

    def _greedy(self, prompt_ids: Sequence[int], max_tokens: int) -> Sample:
        ((sample,),) = self._generate([{"prompt_ids": prompt_ids, "max_tokens": max_tokens, **GREEDY}])
        return sample

    def _generate(self, requests: Sequence[Mapping[str, Any]]) -> list[list[Sample]]:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": list(request["prompt_ids"])} for request in requests]
        settings = [
            SamplingParams(**AS_TOKENS, **{name: value for name, value in request.items() if name != "prompt_ids"})
            for request in requests
        ]
        outputs = self.engine.generate(prompts, settings, use_tqdm=False)
        return [[_sample(one) for one in output.outputs] for output in outputs]


def _sample(output: Any) -> Sample:
    chosen = zip(output.token_ids, output.logprobs, strict=True)
    logprobs = tuple(at_place[token].logprob for token, at_place in chosen)
    return Sample(tuple(output.token_ids), logprobs, output.finish_reason == "stop")
