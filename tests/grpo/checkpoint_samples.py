"""Small checkpoints to save, compare and damage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from grpo.checkpoint.store import find_checkpoints, save_checkpoint

FILES = [
    "MANIFEST.json",
    "config.json",
    "model.safetensors",
    "trainer_state/optimizer.safetensors",
    "trainer_state/state.json",
]


def export(folder: Path) -> None:
    save_file({"weight": torch.arange(64.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')


def save(run_dir: Path, step: int, **changes: Any) -> Path:
    parts = {"export": export, "tensors": {"optimizer": {"step": torch.tensor(step)}}, "state": {"step": step}}
    return save_checkpoint(run_dir, step, **(parts | changes))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def folder_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuse_skips(path: Path, reason: str) -> None:
    raise AssertionError(f"{path} was skipped: {reason}")


def steps(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in find_checkpoints(run_dir)]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut_one_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def point_elsewhere(path: Path) -> None:
    copy = path.parent.parent / f"copy-of-{path.name}"
    shutil.move(path, copy)
    path.symlink_to(copy)


DAMAGES: list[Callable[[Path], None]] = [truncate, empty, cut_one_byte, flip_a_bit, append, os.remove, point_elsewhere]
