"""Routed experts: for a handful of tokens, and in low precision.

For a few rows, sorting tokens by expert takes longer than the products that it saves, and nearly every expert's weights
are read anyway: there all experts see every token, and the gate's weights leave out what it did not choose.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MOST = 256  # tokens x experts; above, sorting pays (tests/benchmarks/README.md)


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """What the layer's feed-forward part `mlp`, with experts or without, makes of hidden states (N, hidden)."""
    experts = getattr(mlp, "experts", None)
    plain = hasattr(experts, "gate_up_proj")  # else there are none, or an adapter stands around them
    if not plain or len(x) * experts.num_experts > MOST:
        return mlp(x[None])[0]
    _, weights, chosen = mlp.gate(x)
    gates = weights.new_zeros(len(x), experts.num_experts).scatter_(1, chosen, weights)
    gate, up = (x @ experts.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
    made = (experts.act_fn(gate) * up) @ experts.down_proj.transpose(1, 2)  # (experts, N, hidden)
    return (made * gates.T[:, :, None]).sum(dim=0).to(x.dtype) + mlp.shared_experts(x)


def cast_experts(model: nn.Module) -> None:
    """Lets the routed experts compute in autocast's dtype, as linear layers do. It does not cast the operands of a
    grouped product, so that transformers takes the type of the weights: fp32, slow, and on a GPU expert by expert."""
    for module in model.modules():
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            module.forward = partial(_in_autocast_dtype, module)


def _in_autocast_dtype(experts: nn.Module, x: Tensor, *routing: Tensor) -> Tensor:
    device = x.device.type
    cast = Cast(experts, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else experts
    return type(experts).forward(cast, x, *routing)


class Cast:
    """A module as its forward sees it, with parameters of another type."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self.module, self.dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        return value.to(self.dtype) if isinstance(value, nn.Parameter) else value
