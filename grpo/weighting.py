"""How token losses become one number: a weight for every token, fixed before the first backward of an update.

The loss of an update is `(loss_BT * weights_BT).sum()` over all its micro-batches and processes. Because the
normaliser is that of the whole update, splitting the rows in another way cannot change the gradient.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "fixed_length"]

AGGREGATION: dict[str, Aggregation] = {
    "grpo": "sequence_mean",  # DeepSeekMath (2402.03300) eq. 3: 1/G sum_i 1/|o_i| sum_t
    "dapo": "token_mean",  # DAPO (2503.14476)
    "bnpo": "token_mean",  # in TRL the mean of each micro-batch; here of the update, so equal to dapo
    "cispo": "token_mean",  # MiniMax-M1 (2506.13585)
    "dr_grpo": "fixed_length",  # Dr. GRPO (2503.20783): a constant budget instead of |o_i|
}


def loss_weights(
    mask_BT: Tensor, *, aggregation: Aggregation, num_tokens: int, num_sequences: int, max_completion_length: int
) -> Tensor:
    """Weights of the tokens of these rows, 0 outside the mask; floating (the mask's own type if it is floating).

    num_tokens: counted tokens of the whole update. num_sequences: rows of the whole update, *with* those that have no
    counted token (truncated, or reward failed): they weigh 0 but stay in the denominator, as in TRL, so that masking
    a row makes the step smaller and never its siblings louder.
    """
    if aggregation == "token_mean":
        return mask_BT / max(num_tokens, 1)  # an update may have no counted token at all
    if aggregation == "sequence_mean":
        return mask_BT / (mask_BT.sum(dim=1, keepdim=True).clamp(min=1) * num_sequences)
    return mask_BT / (num_sequences * max_completion_length)
