"""Named tensors in one safetensors file: the exact bits, and nothing that executes when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grpo.errors import CheckpointError


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Any device, stride and sharing of memory; shape, dtype and bits come back the same, sharing does not.

    Raises OSError or SafetensorError when the file cannot be written.
    """
    apart: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in storages:  # safetensors refuses tensors that share memory
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        apart[name] = own
    save_file(apart, path)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """CPU tensors that own their memory. Raises CheckpointError naming the file when it cannot be read."""
    try:
        # load_file maps the file; state that lived on in the mapping would break when the checkpoint is pruned.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def count_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes these tensors take in a file, header not counted."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
