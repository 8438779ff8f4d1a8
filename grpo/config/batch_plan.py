"""TRL's batch keys in our terms: problems per rollout and updates per rollout.

TRL 1.16 (`GRPOConfig.__post_init__`), for W processes: an update consumes `per_device_train_batch_size` x W x
`gradient_accumulation_steps` completions; a rollout samples `generation_batch_size` completions, or
`per_device_train_batch_size` x W x `steps_per_generation`. The trap: `steps_per_generation` counts micro-batches, so 16
updates per rollout need 16 x `gradient_accumulation_steps`. What TRL refuses for not dividing is rounded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from grpo.config.coerce import coerce
from grpo.errors import ConfigError

BATCH_KEYS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "generation_batch_size",
)
DEFAULT_PER_DEVICE = 8  # transformers' TrainingArguments


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """`explanation` is one line to print."""

    problems_per_rollout: int
    num_minibatches: int
    explanation: str


def plan_batch(values: Mapping[str, Any], *, num_generations: int, num_processes: int) -> BatchPlan:
    """What the batch keys among `values` ask for. Raises ConfigError for a value below 1 and for TRL's own conflict."""
    values = {key: values[key] for key in BATCH_KEYS if values.get(key) is not None}
    per_device = _count(values, "per_device_train_batch_size", DEFAULT_PER_DEVICE)
    accumulation = _count(values, "gradient_accumulation_steps", 1)
    if "steps_per_generation" in values and "generation_batch_size" in values:
        raise ConfigError(
            "steps_per_generation and generation_batch_size both say how much one rollout samples: keep one of the two"
        )
    forward = per_device * num_processes
    per_update = forward * accumulation
    default_rollout = forward * _count(values, "steps_per_generation", accumulation)
    sampled = _count(values, "generation_batch_size", default_rollout)
    updates = max(1, round(Fraction(sampled, per_update)))
    # Fewer than one update: TRL samples several times under unchanged weights before it steps. Here: once, for all.
    rows = max(sampled, per_update)
    problems = max(1, round(Fraction(rows, num_generations)))
    explanation = (
        f"{per_device} per device x {num_processes} process(es) x {accumulation} accumulated = {per_update} "
        f"completions per update, {sampled} per rollout -> problems_per_rollout: {problems} (x {num_generations} "
        f"completions), num_minibatches: {updates}"
    )
    wanted = (Fraction(sampled, num_generations), Fraction(sampled, per_update))
    if wanted != (problems, updates):
        explanation += f" (rounded from {float(wanted[0]):.4g} problems and {float(wanted[1]):.4g} updates per rollout)"
    return BatchPlan(problems_per_rollout=problems, num_minibatches=updates, explanation=explanation)


def _count(values: Mapping[str, Any], key: str, default: int) -> int:
    number = coerce(key, values.get(key, default), int)
    if number < 1:
        raise ConfigError(f"{key}: got {number}; allowed: at least 1")
    return number
