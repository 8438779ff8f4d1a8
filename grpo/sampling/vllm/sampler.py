"""The vLLM sampling engine: requests of token ids to servers that hold the policy's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from data.problem import Problem
from grpo.config import SamplingConfig, VllmConfig
from grpo.distributed import Dist
from grpo.errors import ConfigError, EndpointError
from grpo.monitor.counting import counted
from grpo.policy.export import gather_weights
from grpo.policy.load import Policy
from grpo.sampling.protocol import Collector, Finished, checked_length, ignore
from grpo.sampling.vllm.colocate import Colocated, colocated
from grpo.sampling.vllm.fleet import Fleet
from grpo.sampling.vllm.probe import TOKENS, probe_of, tolerance
from grpo.sampling.vllm.server import Sample, Server
from grpo.sampling.vllm.transfer import DiskTransport, NcclTransport, Transport, version_of, weights_root
from grpo.sampling_mask import SamplingMask
from grpo.types import Rollout, RolloutGroup

SEED_BITS = 48  # of a group's seed: every server takes it, and the siblings' numbers are added to it


class VllmSampler:
    """A `Sampler` on servers that somebody started, to which every process sends the requests of its own problems, or
    on an engine in each process.

    The random numbers of a completion are the server's, seeded by (seed, round, problem's position, sibling). Groups
    come in the order in which they end. `between_steps` is called while waiting, and may raise to give the round up.
    """

    def __init__(
        self, policy: Policy, cfg: SamplingConfig, *, seed: int, dist: Dist, between_steps: Callable[[], None]
    ) -> None:
        self.policy, self.cfg, self.seed, self.dist = policy, cfg, seed, dist
        if cfg.vllm.vllm_mode == "colocate":
            self.fleet: Fleet | Colocated = colocated(policy, cfg, dist)
            return
        # Where that question is collective, processes that wait for different servers cannot ask it.
        poll = (lambda: None) if dist.sharded else between_steps
        self.fleet = Fleet(cfg.vllm, transport_of(cfg.vllm, dist), poll)
        self.fleet.tolerance, self.fleet.context = dist.done_by_main(lambda: self._checked(self.fleet.up()))

    def sample(
        self,
        problems: Sequence[Problem],
        *,
        positions: Sequence[int],
        round_key: int,
        finished: Finished = ignore,
    ) -> list[RolloutGroup]:
        """Raises EndpointError where servers stay away, hold other weights, or nothing of the round comes back."""
        prompts = [self.policy.encode_prompt(problem.prompt) for problem in problems]
        if prompts:
            self._check_room(prompts)
        self.synchronise(prompts)
        requests = {
            number: {"prompt_ids": prompt, "seed": group_seed(self.seed, round_key, position), **self._settings()}
            for number, (prompt, position) in enumerate(zip(prompts, positions, strict=True))
        }
        size, missing = self.cfg.num_generations, 0
        groups = Collector(problems, size, finished)
        with counted(
            total=len(problems) * size, desc="sampling", unit="rows", disable=not self.dist.is_main
        ) as counter:
            for number, samples in self.fleet.answers(requests) if requests else ():
                missing += samples is None
                groups.add(rows_of(number, size, self._rollouts(prompts[number], samples)))
                counter.update(size)
        if missing and missing == len(problems):
            raise EndpointError(f"the vLLM servers lost all {missing} requests of this round, each of them twice")
        return groups.in_order()

    def synchronise(self, prompts: Sequence[Sequence[int]]) -> None:
        """Bring the policy's weights to the servers where these are others, and compute once what they must answer
        (collective)."""
        policy, fleet, dist = self.policy, self.fleet, self.dist
        version = version_of(policy, dist)
        if version == fleet.version and fleet.probe is not None:
            return
        fleet.version, fleet.probe = version, None
        if not dist.done_by_main(lambda: fleet.transport.has(version)):
            weights = gather_weights(policy, dist, merge=True)
            dist.done_by_main(lambda: fleet.transport.stage(policy, weights, version))
        fleet.load()
        most = min(TOKENS, self.cfg.max_completion_length)
        prompt, tokens = dist.done_by_main(lambda: (prompts[0], fleet.continuation(prompts[0], most)))
        # Where the forward is no common one, the process that was asked to stop leaves it alone: then all have to.
        probe = partial(probe_of, policy, prompt, tokens)
        fleet.probe = probe() if dist.sharded else dist.done_by_main(probe)

    def _settings(self) -> dict[str, Any]:
        """What a server would else fill in from the model's published settings, and ends that are ours, not its own."""
        cfg = self.cfg
        return {
            "n": cfg.num_generations,
            "max_tokens": cfg.max_completion_length,
            "min_tokens": cfg.min_completion_length,
            "temperature": cfg.temperature,
            "top_p": cfg.top_p,
            "top_k": cfg.top_k,
            "min_p": cfg.min_p or 0.0,
            "repetition_penalty": cfg.repetition_penalty,
            "ignore_eos": True,
            "stop_token_ids": list(self.policy.eos_ids),
            "stop": cfg.stop_strings,
        }

    def _rollouts(self, prompt: Sequence[int], samples: Iterable[Sample] | None) -> list[Rollout]:
        if samples is None:
            return [Rollout.missing(prompt, self.policy.pad_id)] * self.cfg.num_generations
        least, ends = self.cfg.min_completion_length, self.policy.eos_ids
        return [
            Rollout(
                prompt_ids=tuple(prompt),
                completion_ids=sample.token_ids,
                sampler_logprobs=sample.logprobs,
                text=self.policy.decode(list(sample.token_ids)),
                stop_reason=self._stop_reason(sample),
                sampling_mask=SamplingMask.of_minimum(least, ends, len(sample.token_ids)),
            )
            for sample in samples
        ]

    def _stop_reason(self, sample: Sample) -> Any:
        if sample.token_ids[-1] in self.policy.eos_ids:
            return "eos"
        return "stop" if sample.stopped else "length"

    def _checked(self, servers: Sequence[Server]) -> tuple[float, int]:
        """What the servers' answers may differ by, nats, and the tokens of prompt and completion that they take."""
        described = [server.check() for server in servers]
        config = self.policy.network.config
        if config.tie_word_embeddings and any(one["device_config"]["device"] == "cpu" for one in described):
            raise ConfigError(
                "vLLM on a CPU multiplies by a copy of tied embeddings that it never renews: train and serve a copy of "
                "the model whose config says tie_word_embeddings: false and whose weights have an lm_head"
            )
        models = [one["model_config"] for one in described]
        allowed = self.cfg.vllm.vllm_probe_tolerance or max(tolerance(self.policy, one["dtype"]) for one in models)
        return allowed, min(one["max_model_len"] for one in models)

    def _check_room(self, prompts: Sequence[Sequence[int]]) -> None:
        """A server would cut completions short without a word."""
        needed = checked_length(prompts, self.policy) + self.cfg.max_completion_length
        if needed > self.fleet.context:
            raise ConfigError(
                f"max_completion_length: got {self.cfg.max_completion_length}, which makes {needed} tokens with the "
                f"longest prompt; vLLM takes {self.fleet.context} here: start its server with --max-model-len {needed} "
                "(colocate: vllm_max_model_length), or set max_prompt_length"
            )


def rows_of(number: int, size: int, rollouts: Sequence[Rollout]) -> Mapping[int, Rollout]:
    return {number * size + sibling: rollout for sibling, rollout in enumerate(rollouts)}


def transport_of(cfg: VllmConfig, dist: Dist) -> Transport:
    """The same on all processes (collective)."""
    if cfg.vllm_weight_transport == "nccl":
        return NcclTransport(cfg.vllm_group_port, dist.device)
    return DiskTransport(weights_root(cfg, dist))


def group_seed(*key: int) -> int:
    """Of the first sibling; vLLM gives the next ones the next numbers."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[: SEED_BITS // 8])
