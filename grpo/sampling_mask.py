"""Which tokens a draw could choose from, kept from the sampler for the trainer: DeepSeek-V3.2's Keep Sampling Mask.

top_p, top_k, min_p and a minimum length draw token a from K, a set that the policy at that time decided on, with
probability p(a) / p(K). What is trained is therefore the policy *given K*, and all four log-probabilities of a token
are taken over K: of the sampler, of the old and the present policy, of the reference.

    log p(a | K) = log p(a) - log p(K)        d log p(a | K) = d log p(a) - d log p(K)

Without K the ratio policy / sampler has the factor p(K) in it, as if the policy had become less likely than it was
(trl#6789). The number p(K) of the old policy, the kept mass, would put the ratio right at the first update only: later
policies give K another mass. And p(K) has a gradient, which a number has not: without it tokens are pushed up for being
among few in K, and not for their reward. So K itself is kept. That K depends on the policy adds nothing to the
gradient, since small changes of the weights leave it as it is.

Memory: each token's list holds the kept ids or the cut ones, whichever are fewer, 4 bytes each, and 5 bytes for itself:
at most 2 bytes x vocabulary a token, and 4 x top_k bytes where top_k is on (ties aside). It stays in CPU memory, and is
there only where sampling cuts something off, and only from samplers that training draws from.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.device import sent


@dataclass(frozen=True, kw_only=True)
class SamplingMask:
    """For each of M tokens a list of ids. ids_S: int32, the lists one after another. sizes_M: int32, their lengths.
    cut_M: bool, True where the list names what could not be drawn, False where it names what could."""

    ids_S: Tensor
    sizes_M: Tensor
    cut_M: Tensor

    def __len__(self) -> int:
        return len(self.sizes_M)

    @property
    def nbytes(self) -> int:
        return self.ids_S.nbytes + self.sizes_M.nbytes + self.cut_M.nbytes

    @classmethod
    def free(cls, num_tokens: int) -> SamplingMask:
        """Nothing is cut off."""
        none = torch.zeros(0, dtype=torch.int32)
        return cls(ids_S=none, sizes_M=none.new_zeros(num_tokens), cut_M=torch.ones(num_tokens, dtype=torch.bool))

    @classmethod
    def of_minimum(cls, min_tokens: int, eos_ids: Sequence[int], num_tokens: int) -> SamplingMask | None:
        """No end among the first `min_tokens` of a completion; None where it need not have any."""
        if not min_tokens:
            return None
        short = min(min_tokens, num_tokens)
        return cls(
            ids_S=torch.tensor(eos_ids, dtype=torch.int32).repeat(short),
            sizes_M=torch.tensor([len(eos_ids)] * short + [0] * (num_tokens - short), dtype=torch.int32),
            cut_M=torch.ones(num_tokens, dtype=torch.bool),
        )

    @classmethod
    def joined(cls, masks: Sequence[SamplingMask]) -> SamplingMask:
        return cls(
            ids_S=torch.cat([mask.ids_S for mask in masks]),
            sizes_M=torch.cat([mask.sizes_M for mask in masks]),
            cut_M=torch.cat([mask.cut_M for mask in masks]),
        )

    def at(self, index_M: Tensor) -> SamplingMask:
        """The lists of these tokens, int64 (M',), in that order."""
        sizes_M = self.sizes_M[index_M]
        starts_M = (self.sizes_M.long().cumsum(0) - self.sizes_M)[index_M]
        ends_M = sizes_M.long().cumsum(0)
        offsets_S = torch.arange(int(ends_M[-1]) if len(ends_M) else 0)
        places_S = offsets_S + (starts_M - (ends_M - sizes_M)).repeat_interleave(sizes_M)
        return SamplingMask(ids_S=self.ids_S[places_S], sizes_M=sizes_M, cut_M=self.cut_M[index_M])

    def split(self, size: int) -> list[SamplingMask]:
        """`size` tokens at a time."""
        return [self.at(index_M) for index_M in torch.arange(len(self)).split(size)]

    def blocks(self, vocabulary: int, device: torch.device) -> Tensor:
        """True for the ids that a token could not be, bool (M, vocabulary)."""
        listed_MV = torch.zeros(len(self), vocabulary, dtype=torch.bool, device=device)
        rows_M, sizes_M = torch.arange(len(self), device=device), sent(self.sizes_M, device)
        rows_S = rows_M.repeat_interleave(sizes_M, output_size=len(self.ids_S))
        listed_MV[rows_S, sent(self.ids_S, device).long()] = True
        return listed_MV == sent(self.cut_M, device)[:, None]


class MaskWriter:
    """Collects the lists of one completion, token by token."""

    def __init__(self) -> None:
        self.ids, self.sizes, self.cut = array("i"), array("i"), array("b")

    def add(self, ids: Tensor, cut: bool) -> None:
        """`ids` int32 on the CPU, as `lists` makes them."""
        self.ids.frombytes(ids.numpy().tobytes())
        self.sizes.append(len(ids))
        self.cut.append(cut)

    def mask(self, num_tokens: int) -> SamplingMask:
        """Of the first `num_tokens` tokens."""
        sizes = self.sizes[:num_tokens]
        return SamplingMask(
            ids_S=_tensor(self.ids[: sum(sizes)], torch.int32),
            sizes_M=_tensor(sizes, torch.int32),
            cut_M=_tensor(self.cut[:num_tokens], torch.bool),
        )


def _tensor(numbers: array[int], dtype: torch.dtype) -> Tensor:
    """Without a copy, which `torch.tensor` would make number by number."""
    return torch.frombuffer(numbers, dtype=dtype) if numbers else torch.zeros(0, dtype=dtype)


def lists(kept_BV: Tensor | None, num_rows: int) -> list[tuple[Tensor, bool]]:
    """What `MaskWriter.add` wants to know about each of B rows; None: nothing is cut off. Waits for the device."""
    if kept_BV is None:
        return [(torch.zeros(0, dtype=torch.int32), True)] * num_rows
    cut_B = 2 * kept_BV.float().sum(-1) > kept_BV.shape[1]  # a sum of booleans takes five times as long
    rows, ids = (kept_BV ^ cut_B[:, None]).nonzero(as_tuple=True)
    sizes = rows.bincount(minlength=num_rows).tolist()
    return list(zip(ids.int().cpu().split(sizes), cut_B.tolist(), strict=True))
