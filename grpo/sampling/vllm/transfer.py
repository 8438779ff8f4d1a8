"""How the policy's weights reach a server: through a folder, or from GPU to GPU."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from grpo.config import VllmConfig
from grpo.distributed import Dist
from grpo.errors import ConfigError, EndpointError
from grpo.policy.export import export_policy
from grpo.policy.load import Policy
from grpo.sampling.vllm.server import Server
from grpo.sharding import local
from rewards.remote import RemoteError

VALUES = 1000  # of each weight that its version is made from
Weights = dict[str, torch.Tensor] | None


class Transport(Protocol):
    """`stage` is called by the main process alone, once for each version; `send` by whoever talks to a server that does
    not hold it, from several threads for several servers."""

    def has(self, version: str) -> bool:
        """Whether it is staged."""
        ...

    def stage(self, policy: Policy, weights: Weights, version: str) -> None:
        """`weights`: as `grpo.policy.export.gather_weights` gives them, None where the policy's own are whole."""
        ...

    def send(self, server: Server, version: str) -> None:
        """Raises RemoteError."""
        ...


class DiskTransport:
    """A folder `weights-<version>` in `root`, which trainer and servers see under the same path; it appears when it is
    complete, and those before it go."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, version: str) -> Path:
        return self.root / f"weights-{version}"

    def has(self, version: str) -> bool:
        return self.folder(version).exists()

    def stage(self, policy: Policy, weights: Weights, version: str) -> None:
        """Raises EndpointError when the folder cannot be written."""
        staged = self.root / ".weights-unfinished"
        try:
            for old in (staged, *self.root.glob("weights-*")):
                shutil.rmtree(old, ignore_errors=True)
            export_policy(policy, staged, weights, merge=True)
            staged.rename(self.folder(version))
        except OSError as error:
            raise EndpointError(f"the weights for vLLM could not be written to {self.root}: {error}") from error

    def send(self, server: Server, version: str) -> None:
        try:
            server.load(str(self.folder(version)), version)
        except RemoteError as error:
            told = f"{error}; it must see {self.root} (vllm_weights_dir) under this path"
            raise RemoteError(told, error.kind, again=error.again) from error


class NcclTransport:
    """TRL's client for vLLM's own weight transfer; the main process holds a group with the workers of each server."""

    def __init__(self, group_port: int, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError("vllm_weight_transport: nccl needs a GPU on the trainer's side; use disk")
        self.group_port, self.device = group_port, device
        self.ports: dict[str, int] = {}
        self.named: dict[str, torch.Tensor] = {}
        self.version = ""

    def has(self, version: str) -> bool:
        return version == self.version

    def stage(self, policy: Policy, weights: Weights, version: str) -> None:
        """Raises ConfigError for an adapter, whose weights have other names."""
        from transformers.core_model_loading import revert_weight_conversion

        if hasattr(policy.model, "peft_config"):
            raise ConfigError(
                "vllm_weight_transport: nccl does not know LoRA; use disk, which sends the merged weights"
            )
        self.named = revert_weight_conversion(policy.model, weights or policy.model.state_dict())
        self.version = version

    def send(self, server: Server, version: str) -> None:
        if not self.named:
            raise RemoteError(f"{server.url} lost its weights, which only the main process can send again", again=False)
        within(server.seconds, lambda: self._broadcast(server, version), f"weights for {server.url} over nccl")

    def _broadcast(self, server: Server, version: str) -> None:
        """A group of its own each time: one that a server's restart has left would wait for ever."""
        from trl.generation.vllm_client import VLLMClient

        port = self.ports.setdefault(server.url, self.group_port + len(self.ports))
        client = VLLMClient(base_url=server.url, group_port=port, connection_timeout=server.seconds)
        client.init_communicator(self.device)
        described = [(name, str(w.dtype).removeprefix("torch."), list(w.shape)) for name, w in self.named.items()]
        try:
            server.relabelled(version, lambda: client.update_named_params(described, self._on_device()))
        finally:
            client.close_communicator()

    def _on_device(self) -> Any:
        return ((name, weight.to(self.device)) for name, weight in self.named.items())


def within(seconds: float, work: Callable[[], None], what: str) -> None:
    """Do `work`, which may hang. Raises RemoteError where it fails or takes longer; its thread is left behind then."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, name="vllm", daemon=True).start()
    try:
        done.result(seconds)
    except RemoteError:
        raise
    except Exception as error:
        late = f"not done within {seconds:g} s (vllm_request_timeout)"
        raise RemoteError(f"{what}: {f'{type(error).__name__}: {error}' if done.done() else late}") from error


def weights_root(cfg: VllmConfig, dist: Dist) -> Path:
    """Where weights are written; the same on all processes (collective)."""
    given = Path(cfg.vllm_weights_dir).absolute() if cfg.vllm_weights_dir else None
    return dist.done_by_main(lambda: given or temporary_root())


@cache
def temporary_root() -> Path:
    """A folder of this machine that goes with this process."""
    folder = tempfile.mkdtemp(prefix="vllm-weights-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@torch.no_grad()
def version_of(policy: Policy, dist: Dist) -> str:
    """A name for the policy's weights: 16 hex digits of a hash over about 1,000 values of each, on all processes
    (collective). An optimizer step moves nearly every value, so that other weights have another name."""
    digest = hashlib.sha256()
    for name, value in policy.model.state_dict().items():
        part = local(value).flatten()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(part[:: max(1, part.numel() // VALUES)].float().cpu().numpy().tobytes())
    return hashlib.sha256("".join(dist.gather(digest.hexdigest())).encode()).hexdigest()[:16]
