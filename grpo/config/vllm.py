"""The knobs of the vLLM sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """Only with `sampler: vllm`: servers that you start with `vllm serve`, or an engine inside every process."""

    # server: the servers at vllm_server_base_url; colocate: an engine in each process, on the trainer's own GPU
    vllm_mode: Literal["server", "colocate"] = "server"
    # http://host:port of every server; at least one
    vllm_server_base_url: list[str] = field(default_factory=lambda: ["http://127.0.0.1:8000"])
    vllm_server_timeout: float = 240.0  # seconds to wait for a server that does not answer; above 0
    # seconds of one request: all completions of a problem, or one reload of the weights; above 0
    vllm_request_timeout: float = 1800.0
    vllm_concurrency: int = 64  # problems that each process has under way at each server; at least 1
    # how weights reach a server. disk: through vllm_weights_dir; nccl: from GPU to GPU, with TRL's client
    vllm_weight_transport: Literal["disk", "nccl"] = "disk"
    # folder that all processes and servers see under the same path; null: a temporary one, for those on this machine
    vllm_weights_dir: str | None = None
    vllm_group_port: int = 51216  # nccl: TCP port of the first server's group, the others have the next ones
    # largest difference, in nats, of a log-probability that a server may show; above 0, null: 0.001 in float32, else
    # 0.25
    vllm_probe_tolerance: float | None = None
    vllm_gpu_memory_utilization: float = 0.3  # colocate: the engine's share of the GPU's memory; above 0, at most 1
    vllm_max_model_length: int | None = None  # colocate: tokens of prompt and completion; null: the model's
