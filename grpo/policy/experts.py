"""Routed experts in few operations, and in low precision.

Dimensions: N tokens, k experts chosen for each, E experts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """What the layer's feed-forward part `mlp`, with experts or without, makes of hidden states (N, hidden)."""
    experts = getattr(mlp, "experts", None)
    if not hasattr(experts, "gate_up_proj"):  # there are none, or an adapter stands around them
        return mlp(x[None])[0]
    _, weights, chosen = mlp.gate(x)
    return _routed(experts, x, chosen, weights).to(x.dtype) + mlp.shared_experts(x)


def _routed(experts: nn.Module, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Each expert's tokens side by side; in bf16 on a GPU (SM80 or later) nothing asks how many they are."""
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    experts_of_rows, order = chosen.flatten().sort(stable=True)
    each = torch.arange(experts.num_experts, device=x.device)
    product = partial(F.grouped_mm, offs=torch.searchsorted(experts_of_rows, each, right=True, out_int32=True))
    rows = x.index_select(0, order // chosen.shape[1]).to(dtype)
    gate, up = product(rows, experts.gate_up_proj.to(dtype).transpose(1, 2)).chunk(2, dim=-1)
    made = product(experts.act_fn(gate) * up, experts.down_proj.to(dtype).transpose(1, 2))
    made = made.index_select(0, order.argsort()).view(*chosen.shape, -1)  # (N, k, hidden)
    return (made * weights[:, :, None]).sum(dim=1)


def drop_group_masks(model: nn.Module) -> None:
    """Lets DeepSeek-V3's gates choose in half as many operations where experts of every group may be chosen: the model
    then has one group, as a rule, and the mask of its groups masks nothing."""
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    for module in model.modules():
        if type(module) is DeepseekV3TopkRouter and module.topk_group == module.num_group:
            module.forward = partial(_chosen_among_all, module)


def _chosen_among_all(gate: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, E), weights and experts (N, k): bit for bit what the gate's own forward gives."""
    logits = F.linear(x.view(-1, gate.hidden_dim).float(), gate.weight.float())
    scores = logits.sigmoid()
    chosen = (scores + gate.e_score_correction_bias).topk(gate.top_k, sorted=False).indices
    weights = scores.gather(1, chosen)
    if gate.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return logits, weights * gate.routed_scaling_factor, chosen


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
