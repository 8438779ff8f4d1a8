"""Attention over a pack: a completion attends to its prompt and, causally, to itself.

Dimensions: N tokens of the pack, D numbers of a query, a key or a padded value, R rows, L tokens of a row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo.device import sent
from grpo.packing import Branches, Span

# What torch's scaled_dot_product_attention runs on CPU tensors; called by name, because it keeps the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Look(NamedTuple):
    """A stretch of queries and the stretch of keys that they attend to: to all of them, or, causally, to their own."""

    queries: Span
    keys: Span
    causal: bool


def attend(q: Tensor, k: Tensor, v: Tensor, *, branches: Branches, scaling: float) -> Tensor:
    """Queries and keys (N, heads, D), values (N, heads, D' <= D) -> mixed values (N, heads, D').

    Under autocast in its dtype. Values are padded to D, for torch's fast kernels want equal sizes.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):
        q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    padded = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
    kind = by_stretches if device == "cpu" else by_rows
    return kind(q, k, padded, branches, scaling)[..., : v.shape[-1]]


def by_rows(q: Tensor, k: Tensor, v: Tensor, branches: Branches, scaling: float) -> Tensor:
    """On any device: rows are put together again, prompt and completion, and padded, inside the attention alone.

    Right-padded rows need no mask beside the causal one. Rows of about one length are padded together, so that what is
    held is less than twice what a row's own length asks for, and what is computed less than four times.
    """
    index, place_N = _padded(branches.prompts, branches.completions, q.device)
    parts = []
    for index_RL in index:
        flat = index_RL.flatten()
        heads = (x.index_select(0, flat).view(*index_RL.shape, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True, scale=scaling)
        parts.append(mixed.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).index_select(0, place_N)


@lru_cache(maxsize=1)  # the layers of a forward ask one after another
@torch.inference_mode(False)  # for the next to ask may be a training step
def _padded(
    prompts: tuple[Span, ...], completions: tuple[tuple[Span, ...], ...], device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """The tokens of rows up to 1, 2, 4, 8, ... tokens long, (R, L) each; and of every token, where it is in those
    flattened and put side by side: of a prompt's copies, in one of them."""
    by_length = defaultdict(list)
    for prompt, owns in zip(prompts, completions, strict=True):
        for own in owns:
            tokens = torch.cat([torch.arange(*prompt), torch.arange(*own)])
            by_length[(len(tokens) - 1).bit_length()].append(tokens)
    index = [torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in by_length.values()]
    place_N = torch.empty(1 + max(int(index_RL.max()) for index_RL in index), dtype=torch.int64)
    start = 0
    for rows, index_RL in zip(by_length.values(), index, strict=True):
        for number, tokens in enumerate(rows):
            place_N[tokens] = start + number * index_RL.shape[1] + torch.arange(len(tokens))
        start += index_RL.numel()
    return [sent(index_RL, device) for index_RL in index], sent(place_N, device)


def by_stretches(q: Tensor, k: Tensor, v: Tensor, branches: Branches, scaling: float) -> Tensor:
    """On a CPU: no padding, no copies, and a prompt's keys are read where they stand."""
    return _Stretches.apply(q, k, v, branches, scaling)


class _Stretches(torch.autograd.Function):
    """A completion's softmax runs over two stretches of keys, its prompt's and its own.

    Two results are joined by their log-sum-exps. Backward, each stretch needs the joint result and nothing of the
    other: the trick of ring attention (arXiv 2310.01889).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, branches: Branches, scaling: float) -> Tensor:
        mixed, lse = _look(q, k, v, _at_prompts(branches), scaling)
        own_mixed, own_lse = _look(q, k, v, _at_themselves(branches), scaling)
        mixed.lerp_(own_mixed, torch.sigmoid(own_lse - lse)[..., None].to(q.dtype))
        ctx.save_for_backward(q, k, v, mixed, torch.logaddexp(lse, own_lse))
        ctx.branches, ctx.scaling = branches, scaling
        return mixed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, lse = ctx.saved_tensors
        sums = [torch.zeros_like(x) for x in (q, k, v)]
        for look in (*_at_prompts(ctx.branches), *_at_themselves(ctx.branches)):
            at_queries = [_heads(x, look.queries) for x in (gradient, q)]
            at_keys = [_heads(x, look.keys) for x in (k, v)]
            joint = [_heads(x, look.queries) for x in (mixed, lse)]
            parts = _flash_backward(*at_queries, *at_keys, *joint, 0.0, look.causal, scale=ctx.scaling)
            for total, span, part in zip(sums, (look.queries, look.keys, look.keys), parts, strict=True):
                total[slice(*span)] += part[0].transpose(0, 1)
        return *sums, None, None


def _at_prompts(branches: Branches) -> Iterator[Look]:
    """Prompts look at themselves, all that follows them looks at them: every token once."""
    for prompt, owns in zip(branches.prompts, branches.completions, strict=True):
        yield Look(prompt, prompt, causal=True)
        if owns[0][0] < owns[-1][1]:
            yield Look((owns[0][0], owns[-1][1]), prompt, causal=False)


def _at_themselves(branches: Branches) -> Iterator[Look]:
    for own in (own for owns in branches.completions for own in owns):
        if own[0] < own[1]:
            yield Look(own, own, causal=True)


def _look(q: Tensor, k: Tensor, v: Tensor, looks: Iterator[Look], scaling: float) -> tuple[Tensor, Tensor]:
    """Mixed values (N, heads, D) and log-sum-exps (N, heads) of stretches that do not overlap; 0 and -inf elsewhere."""
    mixed, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
    for queries, keys, causal in looks:
        heads = _heads(q, queries), _heads(k, keys), _heads(v, keys)
        part, part_lse = _flash(*heads, 0.0, causal, scale=scaling)
        mixed[slice(*queries)], lse[slice(*queries)] = part[0].transpose(0, 1), part_lse[0].T
    return mixed, lse


def _heads(x: Tensor, span: Span) -> Tensor:
    """(N, heads, ...) -> (1, heads, tokens of the span, ...), a view."""
    return x[slice(*span)].transpose(0, 1)[None]
