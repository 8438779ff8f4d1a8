"""One rank of a real process group: trains small policies and writes down every gradient and weight it saw.

Started by test_distributed.py and test_fsdp.py through `accelerate launch`; the same functions, called in the test's
own process with a plain `Dist()`, are the oracle.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from data.problem import Problem
from grpo.batching import collate
from grpo.checkpoint.state import Position, capture, restore
from grpo.checkpoint.store import open_checkpoint, save_checkpoint
from grpo.config import RunConfig
from grpo.config.parse import build
from grpo.distributed import Dist, start
from grpo.evaluation import evaluate
from grpo.learner import Learner
from grpo.policy.export import export_policy, gather_weights
from grpo.setup import build_learner, build_policy
from grpo.sharding import local, whole
from grpo.step import training_step, update_policy
from grpo.types import Rollout, RolloutGroup, ScoredGroup, TrainBatch
from rewards.rubric import Rubric

QUESTIONS = ("State 7 + 1.", "What is 12 - 5 + 3, please?", "Say 4.")

# Adam divides by the size of the gradient, so where that is rounding noise it would blow the noise up to full steps:
# an epsilon far above the noise keeps the comparison of weights meaningful.
COMMON = {
    "dataset_name": "unused",
    "dtype": "float32",  # also on GPUs, where the default is coarser than the differences looked for
    "reward_funcs": ["tests.grpo.distributed_process:token_sum"],
    "prompt_template": "plain",
    "max_completion_length": 8,
    "stop_strings": ["e", "1"],
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-3,
    "max_grad_norm": 1e6,
    "eval_samples": 3,
    "seed": 5,
}
CASES: dict[str, dict[str, Any]] = {
    # Three problems on two processes, two updates a rollout.
    "three_problems": {"problems_per_rollout": 3, "num_generations": 4, "num_minibatches": 2},
    # Two processes with unequal numbers of forwards and of `generate` calls, and everything that costs a forward.
    "row_by_row": {
        "problems_per_rollout": 3,
        "num_generations": 4,
        "num_iterations": 2,
        "max_tokens_per_microbatch": 1,
        "rows_per_forward": 3,
        "beta": 0.1,
        "gradient_checkpointing": True,
        "loss_type": "dapo",
    },
    # An adapter, over what is frozen and shards all the same.
    "adapter": {
        "problems_per_rollout": 3,
        "num_generations": 4,
        "num_minibatches": 2,
        "use_peft": True,
        "lora_r": 4,
        "learning_rate": 1e-2,
        "beta": 0.1,
    },
    # Rounds of sampling until the batch is full of groups that the processes found unevenly.
    "rounds": {
        "problems_per_rollout": 3,
        "num_generations": 3,
        "num_minibatches": 2,
        "dynamic_sampling": True,
        "reward_funcs": ["tests.grpo.distributed_process:seldom"],
    },
    # The second process has no problem at all.
    "one_problem": {"problems_per_rollout": 1, "num_generations": 3, "num_minibatches": 3},
}
# Too coarse to be sampled from: its completions, and so everything after them, may differ.
LOW_PRECISION: dict[str, dict[str, Any]] = {
    "bf16": {"problems_per_rollout": 3, "num_generations": 4, "dtype": "bfloat16"},
    "bf16 adapter": {"problems_per_rollout": 3, "num_generations": 4, "dtype": "bfloat16", "use_peft": True},
}
ROLLOUTS = 2
RESUMED = ("row_by_row", "adapter")


def token_sum(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that tells even random completions apart."""
    return [float(sum(ids) % 5) for ids in completion_ids]


def seldom(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that few completions get, so that many groups have none."""
    return [float(sum(ids) % 5 == 0) for ids in completion_ids]


@dataclass
class Record:
    """What one process saw: gradients before each update, weights after the last, and plain numbers."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def config(case: str, model: Path, out: Path, **changes: Any) -> RunConfig:
    return build(
        RunConfig,
        {
            **COMMON,
            **(CASES | LOW_PRECISION)[case],
            "model_name_or_path": str(model),
            "output_dir": str(out),
            **changes,
        },
    )


def learner_of(cfg: RunConfig, dist: Dist, checkpoint: Any = None) -> Learner:
    policy = build_policy(cfg, dist, checkpoint)
    rubric = Rubric.from_config(cfg.rewards.reward_funcs)
    return build_learner(cfg, policy, rubric, dist, ROLLOUTS * cfg.updates_per_rollout)


def problems(count: int) -> list[Problem]:
    return [Problem(id=str(n), question=text, prompt=text, answer="0") for n, text in enumerate(QUESTIONS[:count])]


def run_rollout(learner: Learner, rollout: int, record: Record, case: str) -> None:
    """One rollout with its updates, written down under `<case>/<rollout>.<update>/<parameter>`."""
    updates: list[dict[str, Any]] = record.facts.setdefault(case, [])

    def keep_gradients(*_: Any) -> None:
        for name, parameter in learner.policy.trainable().items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            record.tensors[f"{case}/{len(updates)}/{name}"] = whole(gradient).clone()

    hook = learner.optimizer.register_step_pre_hook(keep_gradients)
    state = SimpleNamespace(global_step=rollout)
    batch = cycle(problems(learner.cfg.batch.problems_per_rollout))
    for result, stats in training_step(learner, batch, rollout=rollout, trainer_state=state):
        updates.append(
            {
                "rewards": result.rewards_PG.tolist(),
                "own_rows": len(result.batch),
                "fates": result.fates,
                "tokens": stats.tokens,
                "loss": stats.loss,
                "kl": stats.kl,
                "entropy": stats.entropy,
                "grad_norm": stats.grad_norm,
                "metrics": result.metrics,
            }
        )
    hook.remove()


def run_case(case: str, model: Path, out: Path, dist: Dist, record: Record) -> Learner:
    """All rollouts of a case, then an evaluation on two problems."""
    cfg = config(case, model, out)
    learner = learner_of(cfg, dist)
    for rollout in range(ROLLOUTS):
        run_rollout(learner, rollout, record, case)
    for name, parameter in learner.policy.trainable().items():
        record.tensors[f"{case}/after/{name}"] = whole(parameter).clone()
    metrics, groups = evaluate(
        learner.policy,
        problems(cfg.batch.problems_per_rollout),
        learner.rubric,
        sampling=cfg.sampling,
        cfg=cfg.eval,
        dist=dist,
        trainer_state=SimpleNamespace(global_step=0),
    )
    record.facts[f"{case}/evaluation"] = metrics
    record.facts[f"{case}/evaluated groups here"] = len(groups)
    return learner


def fixed_batch(learner: Learner) -> TrainBatch:
    """This process's rows of a batch that nobody sampled."""
    policy, dist = learner.policy, learner.dist
    positions = dist.mine(len(QUESTIONS))
    scored = []
    for position in positions:
        rows = torch.randint(4, 300, (4, 8), generator=torch.Generator().manual_seed(position)).tolist()
        prompt = tuple(policy.encode_prompt(QUESTIONS[position]))
        rollouts = tuple(
            Rollout(
                prompt_ids=prompt, completion_ids=tuple(ids), sampler_logprobs=(0.0,) * 8, text="", stop_reason="eos"
            )
            for ids in rows
        )
        group = RolloutGroup(problem=problems(3)[position], rollouts=rollouts)
        scored.append(ScoredGroup(group=group, rewards_G=[0.0] * 4, correct_G=[None] * 4, parts={}, verdicts={}))
    advantages_PG = torch.tensor([[1.0, -1.0, 0.5, -0.5]] * len(positions)).reshape(-1, 4)
    counts_PG = torch.ones_like(advantages_PG, dtype=torch.bool)
    return collate(scored, advantages_PG, counts_PG, positions=positions, pad_id=policy.pad_id)


def low_precision(model: Path, out: Path, dist: Dist, record: Record) -> None:
    """One update in bf16: its gradient, and the types that the weights have while they compute."""
    for case in LOW_PRECISION:
        learner, seen = learner_of(config(case, model, out), dist), {}
        network = learner.policy.network
        for name in ("model.layers.1.self_attn.o_proj", "model.layers.1.mlp.gate", "lm_head"):
            network.get_submodule(name).register_forward_pre_hook(
                lambda module, _, name=name, seen=seen: seen.update({name: str(module.weight.dtype)})
            )

        def keep_gradients(*_: Any, case: str = case, learner: Learner = learner) -> None:
            for name, parameter in learner.policy.trainable().items():
                record.tensors[f"{case}/{name}"] = whole(parameter.grad).clone()

        learner.optimizer.register_step_pre_hook(keep_gradients)
        update_policy(learner.policy, fixed_batch(learner), learner.optimizer, learner.cfg, dist)
        record.facts[f"{case}/weights in forward"] = seen
        record.facts[f"{case}/weights at rest"] = sorted({str(p.dtype) for p in network.parameters()})


def everything(learner: Learner, update: int) -> dict[str, torch.Tensor]:
    """Weights, optimizer, reference and generators, whole and by name: what a resume must bring back."""
    groups, _ = capture(learner, Position(update=update))  # on the main process alone
    tensors = {f"{group}/{name}": value.clone() for group, values in groups.items() for name, value in values.items()}
    return tensors | {f"weights/{name}": whole(p).clone() for name, p in learner.policy.trainable().items()}


def resume(case: str, model: Path, out: Path, dist: Dist, record: Record) -> None:
    """Rollout, checkpoint, rollout; then the checkpoint, restored, and the second rollout again."""
    cfg = config(case, model, out)
    first = learner_of(cfg, dist)
    run_rollout(first, 0, Record(), "discarded")
    tensors, state = capture(first, Position(update=cfg.updates_per_rollout))
    weights = gather_weights(first.policy, dist)
    kept = [*(value for group in tensors.values() for value in group.values()), *(weights or {}).values()]
    record.facts[f"{case}/kept here"] = sum(value.numel() for value in kept)
    if dist.is_main:
        save_checkpoint(
            out,
            cfg.updates_per_rollout,
            export=lambda folder: export_policy(first.policy, folder, weights),
            tensors=tensors,
            state=state,
        )
    dist.barrier()
    saved = open_checkpoint(out / "checkpoints" / f"step-{cfg.updates_per_rollout:08d}")
    second = learner_of(cfg, dist, saved)
    for module in (first, second):
        if module is second:
            restore(second, saved)
            states = [local(v) for state in second.optimizer.state.values() for v in state.values()]
            record.facts[f"{case}/restored"] = [v.untyped_storage().nbytes() - v.nbytes for v in states]
        run_rollout(module, 1, Record(), "discarded")
    ours, theirs = everything(first, 0), everything(second, 0)
    record.facts[f"{case}/resumed"] = {name: torch.equal(ours[name], theirs[name]) for name in ours}


def shard_facts(learner: Learner) -> dict[str, Any]:
    from torch.distributed.tensor import DTensor

    parameters = list(learner.policy.model.parameters())
    moments = [v for state in learner.optimizer.state.values() for k, v in state.items() if k != "step"]
    return {
        "parameters": len(parameters),
        "sharded": sum(isinstance(p, DTensor) for p in parameters),
        "sharded_moments": [isinstance(moment, DTensor) for moment in moments],
        "local_share": sum(local(p).numel() for p in parameters) / sum(p.numel() for p in parameters),
        "threads": torch.get_num_threads(),
        "omp": os.environ.get("OMP_NUM_THREADS"),
    }


def main() -> None:
    model, out = Path(sys.argv[1]), Path(sys.argv[2])
    dist, _ = start(log_with=[], project_dir=None)
    record = Record()
    for case in CASES:
        learner = run_case(case, model, out, dist, record)
        weights = gather_weights(learner.policy, dist, merge=True)
        if dist.is_main:
            export_policy(learner.policy, out / f"exported_{case}", weights, merge=True)
    record.facts["place"] = {"world": dist.world, "sharded": dist.sharded, **shard_facts(learner)}
    for case in RESUMED:
        resume(case, model, out / case, dist, record)
    low_precision(model, out, dist, record)
    (out / f"facts-{dist.rank}.json").write_text(json.dumps(record.facts))
    if dist.is_main:
        save_file(record.tensors, out / "tensors.safetensors")


if __name__ == "__main__":
    main()
