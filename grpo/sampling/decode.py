"""Many rows, one token each: the decode step over rows in flight, with a prompt's cache shared by its group.

Rows in flight stand at the front of every buffer (slots 0 .. n - 1): one that ends is replaced by the last, so no work
is done for rows that are over. A row's slot holds its completion only; the prompt stands once for all its siblings.

Dimensions: n rows in flight, R resident prompts, L tokens of a prompt, T tokens of a completion; K, Q, D, W as in
`grpo.policy.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from grpo.packing import pack_prompts
from grpo.policy.attention import CachedAttention, cached_attention
from grpo.policy.packed import around, embedded, read

FIRST_BLOCK = 64  # tokens for which room is made at first; doubled whenever the longest row is over it


@dataclass(frozen=True)
class Prompt:
    """What is kept of one prompt: its entries of each layer (K, L, W) and the logits (V,) of the token after it."""

    entries: list[Tensor]
    next_logits: Tensor

    def __len__(self) -> int:
        return self.entries[0].shape[1]


class Decoder:
    """The caches of the rows in flight, and the step that advances all of them by one token.

    prompt_of: the resident prompt of each row, (n,). lengths: tokens of each row's completion in the cache, (n,).
    longest: the most of them, known without asking the device.
    """

    def __init__(self, network: nn.Module, *, max_new: int, dtype: torch.dtype) -> None:
        self.network, self.max_new = network, max_new
        self.core = network.model
        self.attention: list[CachedAttention] = [cached_attention(layer.self_attn) for layer in self.core.layers]
        self.device = self.core.embed_tokens.weight.device
        first = self.attention[0]
        shape = (0, first.key_heads, min(FIRST_BLOCK, max_new), first.width)
        self.own = [torch.zeros(shape, device=self.device, dtype=dtype) for _ in self.attention]
        self.prompt_of = self.lengths = torch.zeros(0, dtype=torch.long, device=self.device)
        self.longest = 0
        self.prompts = Prompts(self.attention, dtype=dtype, device=self.device)

    @property
    def bytes_per_token(self) -> int:
        """Of cache, over all layers: for DeepSeek-V3 (kv_lora_rank + qk_rope_head_dim) x layers x bytes of a number."""
        first = self.attention[0]
        return first.key_heads * first.width * len(self.attention) * self.own[0].element_size()

    def read(self, prompts: Sequence[Sequence[int]]) -> list[Prompt]:
        """One forward over new prompts, without padding."""
        pack = pack_prompts(prompts).to(self.device)
        hidden, layers = read(self.network, pack)
        logits = self.network.lm_head(self.core.norm(hidden[pack.sources_M]))
        layers = [entries.to(self.own[0].dtype).transpose(0, 1) for entries in layers]
        return [
            Prompt([entries[:, start:end] for entries in layers], logits[row])
            for row, (start, end) in enumerate(pack.prompts)
        ]

    def place(self, prompts: Sequence[Prompt], prompt_of: Tensor) -> None:
        """These are the resident prompts now; `prompt_of` names one for every row, further rows in new slots behind.

        Their entries move: from here on the prompts hold views of where they stand side by side.
        """
        new = len(prompt_of) - len(self.lengths)
        self.prompts.replace_by(prompts)
        self.lengths = torch.cat([self.lengths, self.lengths.new_zeros(new)])
        self._make_room(self.longest)
        self._arrange(prompt_of)

    def keep(self, rows: Tensor) -> Tensor:
        """End the rows that `rows` (n,), bool, does not name. Returns the old slot of each row that goes on, (n',)."""
        remaining = int(rows.sum())
        order = torch.arange(remaining, device=self.device)
        holes = (~rows[:remaining]).nonzero()[:, 0]
        movers = rows[remaining:].nonzero()[:, 0] + remaining
        order[holes] = movers
        for own in self.own if len(movers) else ():
            own[holes, :, : self.longest] = own[movers, :, : self.longest]
        self.lengths = self.lengths[order]
        self.longest = int(self.lengths.max()) if remaining else 0
        self._arrange(self.prompt_of[order])
        return order

    def step(self, tokens: Tensor) -> Tensor:
        """Append `tokens` (n,) to the rows and give the logits (n, V) of what follows. Does not wait for the device.

        A row that is full already, whose end nobody has looked at yet, goes on in its last place.
        """
        self.longest = min(self.longest + 1, self.max_new)
        self._make_room(self.longest)
        positions = self.prompts.lengths[self.prompt_of] + self.lengths
        hidden, cos, sin = embedded(self.core, tokens, positions)
        mask = self._mask(self.longest)
        self.places = torch.arange(len(tokens), device=self.device), self.lengths.clamp(max=self.max_new - 1)
        for number, (layer, attention) in enumerate(zip(self.core.layers, self.attention, strict=True)):
            hidden = around(layer, hidden, partial(self._attend, number, attention, cos=cos, sin=sin, mask=mask))
        self.lengths = self.lengths + 1
        return self.network.lm_head(self.core.norm(hidden))

    def _mask(self, width: int) -> Tensor:
        """0 where a row's token attends, -inf elsewhere: to its prompt, and to `width` places of its own."""
        own = torch.arange(width, device=self.device) <= self.lengths[:, None]
        visible = torch.cat([self.prompts.mask[self.prompt_of], own], dim=1)
        return torch.zeros(visible.shape, device=self.device).masked_fill_(~visible, float("-inf"))[:, None, None]

    def _attend(
        self, number: int, attention: CachedAttention, x: Tensor, *, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> Tensor:
        """Attention of layer `number`, over the prompts and the rows' own tokens, the new one among them."""
        query, entry = attention.project(x, cos, sin)
        rows, places = self.places
        shared = self.prompts.entries[number]
        self.own[number][rows, :, places] = entry.to(self.own[number].dtype)
        own = self.own[number][: len(x), :, : mask.shape[-1] - shared.shape[2]]
        return attention.output(self._mixed(attention, query, shared, own, mask))

    def _mixed(self, attention: CachedAttention, query: Tensor, shared: Tensor, own: Tensor, mask: Tensor) -> Tensor:
        """Queries (n, K, Q, D) over the prompts (R, K, L, W) and the rows' own tokens (n, K, T, W), as one softmax."""
        length, query, own = shared.shape[2], query.to(own.dtype), own.flatten(0, 1)
        on_prompt = self.table.rows(torch.bmm(self.table.groups(query), attention.keys(shared.flatten(0, 1)).mT))
        on_own = torch.bmm(query.flatten(0, 1), attention.keys(own).mT)
        scores = torch.cat([on_prompt, on_own.view(*query.shape[:3], -1)], dim=-1)
        weights = torch.add(mask, scores.float(), alpha=attention.scaling).softmax(-1).to(own.dtype)
        weights_on_prompt, weights_on_own = weights.split([length, weights.shape[-1] - length], dim=-1)
        mixed = self.table.rows(torch.bmm(self.table.groups(weights_on_prompt), attention.values(shared.flatten(0, 1))))
        return torch.baddbmm(mixed.flatten(0, 1), weights_on_own.flatten(0, 1), attention.values(own)).view_as(mixed)

    def _arrange(self, prompt_of: Tensor) -> None:
        self.prompt_of = prompt_of
        self.table = Table.of(prompt_of, len(self.prompts))

    def _make_room(self, width: int) -> None:
        """For `width` tokens of each row in flight; layer by layer, so that never more than one is there twice."""
        slots, heads, room, entry = self.own[0].shape
        rows = len(self.lengths)
        if rows <= slots and width <= room:
            return
        wider = room if width <= room else min(self.max_new, 2 * room)
        for number, own in enumerate(self.own):
            self.own[number] = own.new_zeros(rows, heads, wider, entry)
            self.own[number][:slots, :, :room] = own[:rows]


class Prompts:
    """The resident prompts side by side: entries of each layer (R, K, L, W), lengths (R,), mask (R, L)."""

    def __init__(self, attention: Sequence[CachedAttention], *, dtype: torch.dtype, device: torch.device) -> None:
        first = attention[0]
        self.entries = [torch.zeros(0, first.key_heads, 0, first.width, dtype=dtype, device=device) for _ in attention]
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self.lengths)

    def replace_by(self, prompts: Sequence[Prompt]) -> None:
        """Layer by layer, so that never more than one is there twice: nothing else holds a prompt's entries."""
        lengths = [len(prompt) for prompt in prompts]
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=self.lengths.device)
        self.mask = torch.arange(max(lengths, default=0), device=self.lengths.device) < self.lengths[:, None]
        rows, width = self.mask.shape
        for number, old in enumerate(self.entries):
            self.entries[number] = old.new_zeros(rows, old.shape[1], width, old.shape[3])
            for place, prompt in zip(self.entries[number], prompts, strict=True):
                place[:, : len(prompt)] = prompt.entries[number]
                prompt.entries[number] = place[:, : len(prompt)]


@dataclass(frozen=True)
class Table:
    """Rows arranged by prompt in a table of R x m places, m the most rows that one prompt has in flight.

    place: the place of each row, (n,). row: the row in each place, any where a place is empty, (R x m,). Both are None
    where the rows stand in the order of their places anyway.
    """

    prompts: int
    most: int
    place: Tensor | None
    row: Tensor | None

    @classmethod
    def of(cls, prompt_of: Tensor, prompts: int) -> Table:
        order = prompt_of.argsort(stable=True)
        counts = prompt_of.bincount(minlength=prompts)
        most = int(counts.max()) if prompts else 0
        number = torch.arange(len(prompt_of), device=prompt_of.device)
        rank = torch.empty_like(number)
        rank[order] = number - (counts.cumsum(0) - counts)[prompt_of[order]]
        place = prompt_of * most + rank
        if len(place) == prompts * most and bool((place == number).all()):
            return cls(prompts, most, None, None)
        row = place.new_zeros(prompts * most)
        row[place] = number
        return cls(prompts, most, place, row)

    def groups(self, x: Tensor) -> Tensor:
        """(n, K, Q, .) -> (R x K, m x Q, .)."""
        x = x if self.row is None else x.index_select(0, self.row)
        _, heads, queries, last = x.shape
        x = x.view(self.prompts, self.most, heads, queries, last).transpose(1, 2)
        return x.reshape(self.prompts * heads, self.most * queries, last)

    def rows(self, x: Tensor) -> Tensor:
        """(R x K, m x Q, .) -> (n, K, Q, .), the inverse of `groups`."""
        heads, queries = len(x) // self.prompts, x.shape[1] // self.most
        x = x.view(self.prompts, heads, self.most, queries, x.shape[2]).transpose(1, 2)
        x = x.reshape(self.prompts * self.most, heads, queries, x.shape[4])
        return x if self.place is None else x.index_select(0, self.place)
