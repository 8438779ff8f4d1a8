"""TRL's side of `grpo_step`: its own GRPOTrainer in its own training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import trl
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback

from grpo.policy.load import route_in_fp32
from grpo.types import TrainBatch
from tests.benchmarks.measure import Meter, Step
from tests.benchmarks.paid_by_length import length_reward
from tests.benchmarks.workload import Workload, force_lengths


def build_trainer(model: Path, workload: Workload, folder: Path, *, rows: int, steps: int, device: str) -> Trainer:
    """`rows`: of a micro-batch; one optimizer step for each round of sampling."""
    AcceleratorState._reset_state()  # of the other trainer in this process, which may have another precision
    settings = trl.GRPOConfig(
        output_dir=str(folder / "trl"), use_cpu=device == "cpu", bf16=device == "cuda", report_to="none",
        per_device_train_batch_size=rows, gradient_accumulation_steps=len(workload.lengths) * workload.size // rows,
        num_generations=workload.size, max_completion_length=workload.longest, max_steps=steps, learning_rate=1e-6,
        lr_scheduler_type="constant", loss_type="grpo", beta=0.0, temperature=1.0, shuffle_dataset=False,
        gradient_checkpointing=False, save_strategy="no", logging_strategy="no", disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    trainer = Trainer(
        model=str(model),
        reward_funcs=length_reward,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": text} for text in workload.lengths]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.workload = workload
    if settings.bf16:  # else the two would not choose the same experts
        route_in_fp32(trainer.model, trainer.args.device)
    return trainer


class Trainer(trl.GRPOTrainer):
    """Remembers what its latest step sampled, and how long two of its phases took."""

    workload: Workload

    def _generate(self, prompts: list[str]) -> Any:
        forced = LogitsProcessorList([Forced(prompts, self.workload, self.eos_token_ids[0], self.args.device)])
        generate = partial(self.model.generate, logits_processor=forced)
        with mock.patch.object(self.model, "generate", generate):
            began = time.perf_counter()
            generated = super()._generate(prompts)
            self.sampling, self.tokens = time.perf_counter() - began, sum(map(len, generated[1]))
        return generated

    def _calculate_rewards(self, *arguments: Any) -> Tensor:
        began = time.perf_counter()
        self.rewards = super()._calculate_rewards(*arguments)
        self.scoring = time.perf_counter() - began
        return self.rewards


class Each(TrainerCallback):
    """Measures each optimizer step and hands it on; what `then` does belongs to none."""

    def __init__(self, trainer: Trainer, then: Callable[[Step], None]) -> None:
        self.trainer, self.then = trainer, then
        self.meter = Meter(trainer.args.device)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.before = state.global_step
        self.meter.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self.trainer
        step = self.meter.stop(
            {"sampling": trainer.sampling, "scoring": trainer.scoring},
            updates=state.global_step - self.before,
            tokens=trainer.tokens,
            rewards=trainer.rewards.flatten().tolist(),
        )
        self.then(step)


class Forced(LogitsProcessor):
    """Rows as long as the workload wants them; siblings stand together."""

    def __init__(self, prompts: list[str], workload: Workload, eos_id: int, device: torch.device) -> None:
        wanted = [workload.lengths[text] for text in prompts[:: workload.size]]
        self.wanted, self.drawn, self.eos_id = torch.tensor(wanted, device=device).flatten(), 0, eos_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        force_lengths(scores, self.wanted, self.drawn, self.eos_id)
        self.drawn += 1
        return scores


def loss_and_gradient(trainer: Trainer, batch: TrainBatch, rows: int) -> tuple[float, dict[str, Tensor]]:
    """Of TRL's own loss over the batch, `rows` at a time, padded as its trainer pads them."""
    inputs, total = {name: x.to(trainer.accelerator.device) for name, x in padded(batch).items()}, 0.0
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = len(batch) // rows
    for start in range(0, len(batch), rows):
        part = {name: x[start : start + rows] if x.dim() else x for name, x in inputs.items()}
        loss = trainer._compute_loss(trainer.model, part)
        loss.backward()
        total += loss.item()
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    return total, gradients


def padded(batch: TrainBatch) -> dict[str, Tensor]:
    """Prompts padded on the left, completions on the right, each to the longest of the rollout."""
    prompts, lengths = batch.prompt_lengths_B.tolist(), batch.lengths_B.tolist()
    ids = [row.tolist() for row in batch.input_ids_BL]
    left, right = max(prompts), max(n - p for n, p in zip(lengths, prompts, strict=True))
    split = [(row[:p], row[p:n]) for row, p, n in zip(ids, prompts, lengths, strict=True)]
    return {
        "prompt_ids": torch.tensor([[0] * (left - len(p)) + p for p, _ in split]),
        "prompt_mask": torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p, _ in split]),
        "completion_ids": torch.tensor([c + [0] * (right - len(c)) for _, c in split]),
        "completion_mask": torch.tensor([[1] * len(c) + [0] * (right - len(c)) for _, c in split]),
        "advantages": batch.advantages_B,
        "num_items_in_batch": batch.completion_mask_BT.sum(),
    }
