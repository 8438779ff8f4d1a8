"""The attention of the model families that the built-in engine knows, cut at the seam between projecting and attending.

A token leaves one entry per key head in a cache. DeepSeek-V3 stores the normalised latent and the rotated key,
kv_lora_rank + qk_rope_head_dim numbers for all heads together, and attends in that latent space: the key up-projection
is absorbed into the query, the value up-projection into the output (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).
Dense families store the rotated key and the value of every key head.

Dimensions: N tokens, K key heads, Q queries per key head, D numbers of a key, W of an entry, P prompts, L tokens.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grpo.distributed import Dist
from grpo.policy.load import Policy

LATENT = frozenset({"deepseek_v3"})
DENSE = frozenset({"llama", "qwen2", "qwen3"})


def unsupported(policy: Policy, dist: Dist) -> str | None:
    """Why the attention below cannot stand in for the policy's own; None if it can."""
    if why := unknown(policy.network.config):
        return why
    if dist.sharded:
        return "the parameters are sharded"
    if len(set(getattr(policy.network, "hf_device_map", {}).values())) > 1:
        return "the model's layers are on several devices"
    return None


def unknown(config: Any) -> str | None:
    """The same, as far as the model's config says it."""
    if config.model_type not in LATENT | DENSE:
        return f"the built-in attention knows {', '.join(sorted(LATENT | DENSE))}, not {config.model_type}"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "the model attends in a sliding window"
    if (kind := config.rope_parameters.get("rope_type")) in ("dynamic", "longrope"):
        return f"the model's rotary embedding ({kind}) changes with the length"
    if config.model_type in LATENT and config.v_head_dim > config.qk_nope_head_dim + config.qk_rope_head_dim:
        return "the model's values are longer than its keys"
    return None


class CachedAttention(Protocol):
    """One layer's attention, reading the policy's live parameters."""

    key_heads: int
    width: int
    scaling: float

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised hidden states (N, hidden), what `rotation` gives -> queries (N, K, Q, D), entries (N, K, W)."""
        ...

    def keys(self, entries: Tensor) -> Tensor:
        """(..., W) -> (..., D), a view."""
        ...

    def values(self, entries: Tensor) -> Tensor:
        """(..., W) -> what the attention weights mix, a view."""
        ...

    def output(self, mixed: Tensor) -> Tensor:
        """Mixed values (N, K, Q, .) -> (N, hidden)."""
        ...


def cached_attention(attention: nn.Module) -> CachedAttention:
    """The layer of one of the families above; made anew for each round of sampling, because of what it precomputes."""
    return LatentAttention(attention) if _is_latent(attention) else DenseAttention(attention)


class LatentAttention:
    """DeepSeek-V3: one key head for all queries; a key is the whole entry, a value its latent part."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention = attention
        self.heads, self.nope, self.rope = attention.num_heads, attention.qk_nope_head_dim, attention.qk_rope_head_dim
        self.rank, self.scaling = attention.kv_lora_rank, attention.scaling
        self.key_heads, self.width = 1, self.rank + self.rope
        up = effective_weight(attention.kv_b_proj).view(self.heads, -1, self.rank)
        self.key_up = up[:, : self.nope].contiguous()  # (heads, nope, rank)
        self.value_up = up[:, self.nope :].transpose(1, 2).contiguous()  # (heads, rank, value)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        parts = _latent_parts(self.attention, x, cos, sin)
        q, rotated, *_ = parts
        absorbed = torch.bmm(q.transpose(0, 1), self.key_up.to(q.dtype)).transpose(0, 1)
        query = torch.cat([absorbed, rotated], dim=-1)
        return query[:, None], entries_of(self.attention, parts)

    def keys(self, entries: Tensor) -> Tensor:
        return entries

    def values(self, entries: Tensor) -> Tensor:
        return entries[..., : self.rank]

    def output(self, mixed: Tensor) -> Tensor:
        values = torch.bmm(mixed[:, 0].transpose(0, 1), self.value_up.to(mixed.dtype)).transpose(0, 1)
        return self.attention.o_proj(values.reshape(len(mixed), -1))


class DenseAttention:
    """Llama, Qwen2, Qwen3: grouped queries; an entry is the key head's rotated key and its value."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention, self.dim, self.scaling = attention, attention.head_dim, attention.scaling
        self.key_heads, self.width = attention.config.num_key_value_heads, 2 * attention.head_dim

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        parts = _dense_parts(self.attention, x, cos, sin)
        return parts[0].view(len(x), self.key_heads, -1, self.dim), entries_of(self.attention, parts)

    def keys(self, entries: Tensor) -> Tensor:
        return entries[..., : self.dim]

    def values(self, entries: Tensor) -> Tensor:
        return entries[..., self.dim :]

    def output(self, mixed: Tensor) -> Tensor:
        return self.attention.o_proj(mixed.reshape(len(mixed), -1))


Parts = tuple[Tensor, ...]  # what a layer projects its input to, by family


def parts_of(attention: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Parts:
    """Normalised hidden states (N, hidden), what `rotation` gives -> what `expanded` and `entries_of` go on from."""
    return (_latent_parts if _is_latent(attention) else _dense_parts)(attention, x, cos, sin)


def entries_of(attention: nn.Module, parts: Parts) -> Tensor:
    """What the tokens leave in a cache, (N, K, W)."""
    entries = torch.cat(parts[-2:], dim=-1)
    return entries[:, None] if _is_latent(attention) else entries


def expanded(attention: nn.Module, parts: Parts) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of every head, (N, heads, .).

    What training attends with: long stretches of queries cost less in the heads' own, smaller space than in the latent.
    """
    if not _is_latent(attention):
        q, k, v = parts
        return q, *(kv.repeat_interleave(attention.num_key_value_groups, dim=1) for kv in (k, v))
    q, rotated, latent, key = parts
    heads = attention.kv_b_proj(latent).view(len(latent), attention.num_heads, -1)
    k, v = heads.split([attention.qk_nope_head_dim, attention.v_head_dim], dim=-1)
    key = key[:, None].expand(-1, attention.num_heads, -1)
    return torch.cat([q, rotated], dim=-1), torch.cat([k, key], dim=-1), v


def _is_latent(attention: nn.Module) -> bool:
    return attention.config.model_type in LATENT


def _latent_parts(a: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Parts:
    """DeepSeek-V3's queries without and with rotation (N, heads, .), normalised latent (N, rank), rotated key."""
    q = a.q_proj(x) if a.q_lora_rank is None else a.q_b_proj(normalised(a.q_a_layernorm, a.q_a_proj(x)))
    q = q.view(len(x), a.num_heads, -1)
    q, rotated = q.split([a.qk_nope_head_dim, a.qk_rope_head_dim], dim=-1)
    latent, key = a.kv_a_proj_with_mqa(x).split([a.kv_lora_rank, a.qk_rope_head_dim], dim=-1)
    both = torch.cat([rotated, key[:, None]], dim=1)
    both = rotate(halves(both) if a.config.rope_interleave else both, cos, sin)
    return q, both[:, :-1], normalised(a.kv_a_layernorm, latent), both[:, -1]


def _dense_parts(a: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Parts:
    """Rotated queries (N, heads, D), rotated keys and values (N, key heads, D)."""
    shape = (len(x), -1, a.head_dim)
    q, k, v = a.q_proj(x).view(shape), a.k_proj(x).view(shape), a.v_proj(x).view(shape)
    if hasattr(a, "q_norm"):
        q, k = normalised(a.q_norm, q), normalised(a.k_norm, k)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """What the families' RMSNorm `norm` makes of x, in one call where their own code takes six. As in their code an x
    of a lower type than the weight's is raised to it; torch has no fused kernel for two types."""
    return F.rms_norm(x.to(norm.weight.dtype), norm.weight.shape, norm.weight, norm.variance_epsilon)


def effective_weight(linear: nn.Module) -> Tensor:
    """The matrix that a linear layer multiplies with, LoRA's share included where an adapter is on."""
    if not hasattr(linear, "get_delta_weight"):
        return linear.weight
    weight = linear.get_base_layer().weight
    if linear.disable_adapters or linear.merged:
        return weight
    return weight + sum(linear.get_delta_weight(name) for name in linear.active_adapters)


def rotation(rotary_emb: nn.Module, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, D) of positions (N,), as `rotate` takes them: the first half of the sines is negated."""
    cos, sin = rotary_emb(hidden, positions[None])
    first, second = sin[0].chunk(2, dim=-1)
    return cos[0], torch.cat([-first, second], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of heads (N, heads, D): the first half is turned with the second (Llama's layout)."""
    return torch.addcmul(x * cos[:, None], x.roll(x.shape[-1] // 2, dims=-1), sin[:, None])


def halves(x: Tensor) -> Tensor:
    """From neighbouring pairs (DeepSeek's layout) to a first half and a second."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
