"""Between the memory of the CPU and a device's."""

from __future__ import annotations

import torch


def sent(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor's numbers on `device`; a GPU fetches them when it comes to it, and nobody waits for that."""
    assert x.device.type == "cpu"  # the other way, numbers would be read before they are there
    x = x.contiguous()  # else torch copies them once more, to where a GPU cannot fetch them by itself
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
