"""Routed experts, in few operations: for a handful of tokens, for many, and in low precision.

For a few rows, sorting tokens by expert takes longer than the products that it saves, and nearly every expert's weights
are read anyway: there all experts see every token, and the gate's weights leave out what it did not choose.

Dimensions: N tokens, k experts chosen for each, E experts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST = 128  # tokens x experts; above, sorting pays: measured on a CPU with 8 experts of 2 chosen


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """What the layer's feed-forward part `mlp`, with experts or without, makes of hidden states (N, hidden)."""
    experts = getattr(mlp, "experts", None)
    if not hasattr(experts, "gate_up_proj"):  # there are none, or an adapter stands around them
        return mlp(x[None])[0]
    _, weights, chosen = mlp.gate(x)
    compute = _dense if len(x) * experts.num_experts <= MOST else _sorted
    return compute(experts, x, chosen, weights).to(x.dtype) + mlp.shared_experts(x)


def _dense(experts: nn.Module, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    gates = weights.new_zeros(len(x), experts.num_experts).scatter_(1, chosen, weights)
    gate, up = (x @ experts.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
    made = (experts.act_fn(gate) * up) @ experts.down_proj.transpose(1, 2)  # (E, N, hidden)
    return (made * gates.T[:, :, None]).sum(dim=0)


def _sorted(experts: nn.Module, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Each expert's tokens side by side; nothing asks the device how many they are."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    of_each = (flat[:, None] == torch.arange(experts.num_experts, device=x.device)).sum(dim=0)
    product = partial(F.grouped_mm, offs=of_each.cumsum(0, dtype=torch.int32))
    rows = x.index_select(0, order // chosen.shape[1]).to(dtype)
    gate, up = product(rows, experts.gate_up_proj.to(dtype).transpose(1, 2)).chunk(2, dim=-1)
    made = product(experts.act_fn(gate) * up, experts.down_proj.to(dtype).transpose(1, 2))
    made = made.index_select(0, order.argsort()).view(*chosen.shape, -1)  # (N, k, hidden)
    return (made * weights[:, :, None]).sum(dim=1)


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
