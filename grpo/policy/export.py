"""The policy as others read it: whole weights on the main process, and a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grpo.distributed import Dist
from grpo.errors import CheckpointError
from grpo.policy.load import Policy
from grpo.sharding import class_before, gathered


def on_main(tensors: Iterable[tuple[str, torch.Tensor]], dist: Dist) -> dict[str, torch.Tensor]:
    """These tensors, whole, on the CPU of the main process; nothing elsewhere (collective, one after the other)."""
    kept = {}
    for name, value in tensors:
        full = gathered(value)
        if dist.is_main:
            kept[name] = full.cpu()
    return kept


def gather_weights(policy: Policy, dist: Dist, *, merge: bool = False) -> dict[str, torch.Tensor] | None:
    """The whole weights that `export_policy` writes, kept by the main process alone (collective); None where nothing is
    sharded, for `model` has them itself. Memory: as `capture`, 4 bytes per parameter; of LoRA the adapter alone, unless
    it is to be merged."""
    if not dist.sharded:
        return None
    adapter_alone = hasattr(policy.model, "peft_config") and not merge
    return on_main((policy.trainable() if adapter_alone else policy.model.state_dict()).items(), dist)


def export_policy(
    policy: Policy, folder: Path, weights: dict[str, torch.Tensor] | None, *, merge: bool = False
) -> None:
    """Write the policy as a Hugging Face folder; `weights` are those of `gather_weights`. One process calls this.

    LoRA: the adapter alone, or with `merge` the base model with the adapter folded in.
    """
    from transformers.utils import logging as transformers_logging

    model = policy.model
    _name_the_router(policy.network.config)
    if merge and hasattr(model, "peft_config"):
        model, weights = _merged(policy, weights), None
    transformers_logging.disable_progress_bar()  # its bar would break into the run's own at every save
    model.save_pretrained(folder, state_dict=weights)
    transformers_logging.enable_progress_bar()
    policy.tokenizer.save_pretrained(folder)


def _name_the_router(config: Any) -> None:
    """vLLM reads from the config which of DeepSeek's routers a checkpoint has; transformers knows V3's alone, and does
    not write it down."""
    if config.model_type == "deepseek_v3":
        config.topk_method, config.scoring_func = "noaux_tc", "sigmoid"


def _merged(policy: Policy, weights: dict[str, torch.Tensor] | None) -> nn.Module:
    """A copy of the base model with the adapter folded in, in CPU memory; of `weights` where the policy is shards."""
    from peft import get_peft_model

    if weights is None:
        state = policy.model.state_dict()
        weights = {name: value.to("cpu", copy=True) for name, value in state.items()}
    network = policy.network
    with torch.device("meta"):
        twin = get_peft_model(class_before(network)(network.config), policy.model.peft_config["default"])
    twin.load_state_dict(weights, assign=True)
    twin.get_base_model().tie_weights()
    twin.get_base_model().generation_config = network.generation_config
    return twin.merge_and_unload()


def load_adapter(policy: Policy, folder: Path) -> None:
    """Put a saved LoRA adapter into a policy that was built with the same adapter settings."""
    from peft import load_peft_weights, set_peft_model_state_dict

    result = set_peft_model_state_dict(policy.model, load_peft_weights(str(folder), device="cpu"))
    if result.unexpected_keys:
        raise CheckpointError(f"{folder} holds adapter weights this model lacks: {result.unexpected_keys[:3]}")
