"""A policy's forward over a pack: the model's own layers on tokens without padding, attention along the branches.

Linear layers, norms and experts see every token of the pack once, so siblings share one computation of their prompt,
forward and backward. N: tokens of the pack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from grpo.distributed import Dist
from grpo.packing import Pack
from grpo.policy.attention import Parts, entries_of, expanded, normalised, parts_of, rotation, unsupported
from grpo.policy.branching import attend
from grpo.policy.experts import feed_forward
from grpo.policy.load import Policy


def unpackable(policy: Policy, dist: Dist) -> str | None:
    """Why the policy's forward cannot run over packs; None if it can."""
    if why := unsupported(policy, dist):
        return why
    return "its attention has a dropout" if policy.network.config.attention_dropout else None


def last_hidden(network: nn.Module, pack: Pack) -> Tensor:
    """Hidden states (N, hidden) before the final norm, of a model of the families of `grpo.policy.attention`.

    Layers are checkpointed where the model has gradient checkpointing on.
    """
    hidden, cos, sin = embedded(network.model, pack.ids_N, pack.positions_N)
    for layer in network.model.layers:
        through = partial(_through, layer, cos=cos, sin=sin, pack=pack)
        if layer.gradient_checkpointing and layer.training:
            hidden = layer._gradient_checkpointing_func(through, hidden)
        else:
            hidden = through(hidden)
    return hidden


def read(network: nn.Module, pack: Pack) -> tuple[Tensor, list[Tensor]]:
    """The same, and what the tokens leave in each layer's cache, (N, K, W)."""
    hidden, cos, sin = embedded(network.model, pack.ids_N, pack.positions_N)
    cache: list[Tensor] = []

    def kept(attention: nn.Module, x: Tensor) -> Tensor:
        parts = parts_of(attention, x, cos, sin)
        cache.append(entries_of(attention, parts))
        return _output(attention, parts, pack)

    for layer in network.model.layers:
        hidden = around(layer, hidden, partial(kept, layer.self_attn))
    return hidden, cache


def embedded(core: nn.Module, ids: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens and their positions (N,) -> hidden states (N, hidden) and what `rotation` gives, (N, .), (N, .)."""
    hidden = core.embed_tokens(ids)
    return hidden, *rotation(core.rotary_emb, hidden, positions)


def around(layer: nn.Module, hidden: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """The model's own layer around attention: `attend` takes the normalised hidden states (N, hidden)."""
    hidden = hidden + attend(normalised(layer.input_layernorm, hidden))
    return hidden + feed_forward(layer.mlp, normalised(layer.post_attention_layernorm, hidden))


def _through(layer: nn.Module, hidden: Tensor, *, cos: Tensor, sin: Tensor, pack: Pack) -> Tensor:
    attention = layer.self_attn
    return around(layer, hidden, lambda x: _output(attention, parts_of(attention, x, cos, sin), pack))


def _output(attention: nn.Module, parts: Parts, pack: Pack) -> Tensor:
    mixed = attend(*expanded(attention, parts), branches=pack, scaling=attention.scaling)
    return attention.o_proj(mixed.flatten(1))
