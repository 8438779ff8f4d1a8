"""What a run will do, in numbers, before it does it: batch arithmetic, forwards, tokens, and an estimate of memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from torch import nn

from grpo.config import AdapterConfig, RunConfig, SamplingConfig
from grpo.config.schedule import Stage
from grpo.errors import ConfigError
from grpo.packing import LOGITS_PER_CHUNK

FP32 = 4
# Bytes kept for the backward pass per token, layer and hidden unit at 2 bytes a number, attention scores excluded:
# Korthikanti et al. 2022 (arXiv 2205.05198), eq. 2.
ACTIVATION_BYTES = 34
LOGIT_COPIES = 4  # logits, their selection, scaled, and the softmax's weights, each fp32; packed rows select before
DRAW_BYTES = 5 * FP32  # per vocabulary entry of a row while a token is drawn under a repetition penalty


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a causal language model. `cache_values`: numbers kept per token of context, all layers together."""

    kind: str
    parameters: int
    trainable: int
    layers: int
    hidden: int
    vocabulary: int
    cache_values: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One rollout and its updates. Tokens are upper bounds (every completion at its full length); bytes are estimates.

    cache_bytes: of a token of context, all layers together. `memory`: part -> bytes on each process; `while_updating`
    and `while_sampling` never stand side by side.
    schedule: a line for each change of settings; the bytes are then those of the most demanding part of the run.
    """

    problems: int
    rows: int
    updates_per_rollout: int
    rows_per_update: int
    total_updates: int
    rollouts: int
    mean_prompt: float
    longest_prompt: int
    completion_tokens: int
    generate_calls: int
    decode_steps: int
    scoring_forwards: int
    update_forwards: int
    cache_bytes: int
    memory: Mapping[str, int]
    while_updating: Mapping[str, int]
    while_sampling: Mapping[str, int]
    schedule: tuple[str, ...] = ()

    @property
    def peak_memory(self) -> int:
        phases = sum(self.while_updating.values()), sum(self.while_sampling.values())
        return sum(self.memory.values()) + max(phases)


def shape_of(model: nn.Module, adapter: AdapterConfig) -> ModelShape:
    """Works on the meta device too, where a model of any size costs nothing."""
    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    return ModelShape(
        kind=type(model).__name__,
        parameters=parameters,
        trainable=_lora_parameters(model, adapter) if adapter.use_peft else parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        cache_values=config.num_hidden_layers * _cache_values_per_layer(config),
    )


def make_plan(
    cfg: RunConfig,
    shape: ModelShape,
    prompt_lengths: Sequence[int],
    *,
    total_updates: int,
    num_processes: int = 1,
    bf16: bool = False,
) -> Plan:
    """prompt_lengths: tokens of each problem's prompt. Counts of forwards and bytes are those of one process, and of
    one round of sampling."""
    sampling, batch = cfg.sampling, cfg.batch
    rounds = cfg.selection.max_num_gen_batches if cfg.selection.dynamic_sampling else 1
    rows, longest = cfg.rows_per_rollout, max(prompt_lengths)
    own_rows = math.ceil(batch.problems_per_rollout / num_processes) * sampling.num_generations
    minibatch = math.ceil(own_rows / batch.num_minibatches)
    passes = (cfg.updates_per_rollout > 1) + (cfg.loss.beta > 0)
    at_once, cached = _in_flight(sampling, longest, own_rows)
    calls = math.ceil(own_rows / at_once)
    forwards, largest = _forwards(cfg, longest, minibatch)
    width = 2 if bf16 else FP32
    return Plan(
        problems=batch.problems_per_rollout,
        rows=rows,
        updates_per_rollout=cfg.updates_per_rollout,
        rows_per_update=math.ceil(rows / batch.num_minibatches),
        total_updates=total_updates,
        rollouts=math.ceil(total_updates / cfg.updates_per_rollout),
        mean_prompt=fmean(prompt_lengths),
        longest_prompt=longest,
        completion_tokens=rounds * rows * sampling.max_completion_length,
        generate_calls=calls,
        decode_steps=calls * sampling.max_completion_length,
        scoring_forwards=passes * _forwards(cfg, longest, own_rows)[0],
        update_forwards=cfg.updates_per_rollout * forwards,
        cache_bytes=width * shape.cache_values,
        memory=_standing_memory(cfg, shape, width),
        while_updating=_update_memory(cfg, shape, largest, width),
        while_sampling={} if sampling.sampler == "vllm" else _sampling_memory(shape, at_once, cached, width),
    )


def over_schedule(plans: Sequence[Plan], found: Sequence[Stage]) -> Plan:
    """One plan from those of the parts of a run: its beginning, with the memory of the part that needs most."""
    largest = max(plans, key=lambda plan: plan.peak_memory)
    changes = [
        f"{stage}; at most {count_text(plan.completion_tokens)} tokens sampled per rollout, about "
        f"{size_text(plan.peak_memory)} of memory"
        for plan, stage in zip(plans[1:], found[1:], strict=True)
    ]
    unseen = [f"never reached: {line}" for line in found[0].cfg.schedule[len(changes) :]]
    return replace(
        plans[0],
        memory=largest.memory,
        while_updating=largest.while_updating,
        while_sampling=largest.while_sampling,
        schedule=(*changes, *unseen),
    )


def plan_lines(plan: Plan, shape: ModelShape, cfg: RunConfig) -> list[str]:
    """The plan for a person, one fact per line."""
    sampling = cfg.sampling
    return [
        f"model     {shape.kind}: {count_text(shape.parameters)} parameters, {count_text(shape.trainable)} trained",
        f"rollout   {plan.problems} problems x {sampling.num_generations} completions = {plan.rows} rows",
        f"updates   {plan.updates_per_rollout} per rollout, {plan.rows_per_update} rows each; "
        f"{plan.total_updates} in all, from {plan.rollouts} rollouts",
        *(f"schedule  {line}" for line in plan.schedule),
        f"prompts   mean {plan.mean_prompt:.1f}, longest {plan.longest_prompt} tokens",
        f"tokens    at most {count_text(plan.completion_tokens)} sampled per rollout "
        f"({sampling.max_completion_length} per completion)",
        f"forwards  per rollout and process, at full length: {plan.generate_calls} generate calls of together "
        f"{plan.decode_steps} token steps, {plan.scoring_forwards} for old and reference log-probabilities, "
        f"{plan.update_forwards} forward and backward",
        f"cache     {plan.cache_bytes:,} bytes for a token of context, all layers together",
        "memory    estimate for each process; parameters counted whole, not sharded:",
        *_memory_lines(plan.memory),
        "          and, while updating,",
        *_memory_lines(plan.while_updating),
        "          or, while sampling,",
        *_memory_lines(plan.while_sampling),
        f"          {'peak':<28} {size_text(plan.peak_memory):>10}",
    ]


def _lora_parameters(model: nn.Module, adapter: AdapterConfig) -> int:
    """A rank-r adapter adds r x (inputs + outputs); peft's `all-linear` leaves the output head alone."""
    targets = adapter.lora_target_modules
    names = [targets] if isinstance(targets, str) else targets
    head = model.get_output_embeddings()
    return sum(
        adapter.lora_r * (module.in_features + module.out_features)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (module is not head if names == ["all-linear"] else path.split(".")[-1] in names)
    )


def _cache_values_per_layer(config: Any) -> int:
    """Latent attention keeps one compressed vector and the rotated key; other models a key and a value per head."""
    if getattr(config, "kv_lora_rank", None):
        return config.kv_lora_rank + config.qk_rope_head_dim
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * heads * head_size


def _standing_memory(cfg: RunConfig, shape: ModelShape, width: int) -> dict[str, int]:
    parts = {
        "parameters (fp32)": FP32 * shape.parameters,
        "gradients (fp32)": FP32 * shape.trainable,
        "optimizer state (2 x fp32)": 2 * FP32 * shape.trainable,
    }
    if width < FP32:
        parts["bf16 copies of the weights"] = width * shape.parameters
    if cfg.loss.beta > 0:
        parts["reference (fp32)"] = FP32 * shape.trainable
    return parts


def _forwards(cfg: RunConfig, longest_prompt: int, num_rows: int) -> tuple[int, int]:
    """Forwards over rows with full completions, siblings among them, and the tokens of the largest forward."""
    budget, length, size = cfg.batch.max_tokens_per_microbatch, cfg.sampling.max_completion_length, 1
    if cfg.batch.update == "packed":
        size = cfg.sampling.num_generations
    group = longest_prompt + size * length
    groups, together = math.ceil(num_rows / size), budget // group
    if together:
        return math.ceil(groups / together), min(groups, together) * group
    rows = max(1, (budget - longest_prompt) // length)
    return groups * math.ceil(size / rows), longest_prompt + min(rows, size) * length


def _update_memory(cfg: RunConfig, shape: ModelShape, tokens: int, width: int) -> dict[str, int]:
    logits = tokens * shape.vocabulary
    copies = LOGIT_COPIES
    if cfg.batch.update == "packed":
        logits, copies = min(logits, max(LOGITS_PER_CHUNK, shape.vocabulary)), LOGIT_COPIES - 1
    whole = ACTIVATION_BYTES * width // 2 * tokens * shape.hidden
    checkpointed = whole + shape.layers * tokens * shape.hidden * width
    return {
        "activations": checkpointed if cfg.model.gradient_checkpointing else shape.layers * whole,
        "logits of a micro-batch": copies * FP32 * logits,
    }


def room(cfg: SamplingConfig, longest_prompt: int, num_rows: int) -> tuple[int, int]:
    """How many rows the fast sampler may have in flight, and how many prompts resident, within `max_tokens_in_flight`.

    Twice the prompts that full groups need: the last rows of many groups may be in flight together. Raises ConfigError
    where not even one row fits.
    """
    budget, length, size = cfg.max_tokens_in_flight, cfg.max_completion_length, cfg.num_generations

    def prompts(slots: int) -> int:
        return min(slots, -(-2 * slots // size))

    slots = min(num_rows, int(budget / (length + min(1, 2 / size) * longest_prompt)))
    while slots > 1 and slots * length + prompts(slots) * longest_prompt > budget:
        slots -= 1
    if slots < 1 or slots * length + prompts(slots) * longest_prompt > budget:
        raise ConfigError(
            f"max_tokens_in_flight: got {budget}; one completion of up to {length} tokens (max_completion_length) with "
            f"its prompt of {longest_prompt} needs {length + longest_prompt}"
        )
    return slots, prompts(slots)


def _in_flight(cfg: SamplingConfig, longest_prompt: int, num_rows: int) -> tuple[int, int]:
    """Rows sampled at once, and the most tokens that their caches hold."""
    if cfg.sampler == "fast":
        rows, prompts = room(cfg, longest_prompt, num_rows)
        return rows, rows * cfg.max_completion_length + prompts * longest_prompt
    if cfg.sampler == "vllm":
        return num_rows, 0  # elsewhere
    rows = min(num_rows, cfg.rows_per_forward)
    return rows, rows * (longest_prompt + cfg.max_completion_length)


def _sampling_memory(shape: ModelShape, rows: int, cached: int, width: int) -> dict[str, int]:
    return {
        "KV cache": width * cached * shape.cache_values,
        "drawing a token": DRAW_BYTES * rows * shape.vocabulary,
    }


def _memory_lines(parts: Mapping[str, int]) -> list[str]:
    return [f"            {name:<28} {size_text(size):>8}" for name, size in parts.items()]


def size_text(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.2f} MiB"


def count_text(number: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.4g}{unit}"
    return str(number)
