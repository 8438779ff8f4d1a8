"""A whole training step of this project beside one of TRL's GRPOTrainer: time by phase, tokens per second, peak memory.

    python -m tests.benchmarks.grpo_step --model v3|qwen3 --prompt 64|512 --completion 128|512 [--device cuda]
        [--groups 16] [--size 8] [--repeats 3] [--threads N] [--json FILE] [--quick]

Both train the same model on the same prompts with the same reward and optimizer, in alternation; every completion has
the same length in both, and no row is left out of the update. First the loss and the gradient of one batch are
compared, and TRL's micro-batch is chosen: the fastest of MICRO_BATCHES. `unshared` is this project with every row
computing its prompt for itself, for one step. Ratios of the wall clock need a machine without other work; CPU is the
seconds of all threads together. --quick: a tiny model and a step of seconds, to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from grpo.batching import collate
from grpo.setup import git_commit, versions
from grpo.step import frozen_logprobs, update_policy
from grpo.types import RolloutGroup, ScoredGroup, TrainBatch
from tests.benchmarks.measure import PHASES, Step
from tests.benchmarks.ours import Ours
from tests.benchmarks.theirs import Each, Trainer, build_trainer, loss_and_gradient
from tests.benchmarks.workload import Workload, save_model
from tests.grpo import parts

MICRO_BATCHES = (4, 8, 16, 32)  # rows
TOKENS = {"cpu": 2048, "cuda": 32768}  # of a micro-batch here
GROUPS_COMPARED = 4
TOLERANCE = {"cpu": 1e-5, "cuda": 5e-2}  # relative; bf16 on a GPU
Kept = dict[str, list[Step]]


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    workload = Workload.draw(groups=args.groups, size=args.size, prompt=args.prompt, completion=args.completion)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_model(args.model, "quick" if args.quick else args.device, folder / "model")
        ours = Ours.build(model, workload, folder, "--max_tokens_per_microbatch", str(TOKENS[args.device]))
        agreement, rows = compare(ours, model, folder, args)
        assert max(agreement.values()) < TOLERANCE[args.device], f"not the same loss and gradient: {agreement}"
        steps = alternate(
            ours, build_trainer(model, workload, folder, rows=rows, steps=args.repeats, device=args.device)
        )
    result = summary(steps, agreement) | {"setting": setting(args, workload, rows)}
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["v3", "qwen3"], default="v3")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.prompt, args.completion, args.groups, args.size = "v3", 12, 16, 2, 4
    return args


def compare(ours: Ours, model: Path, folder: Path, args: argparse.Namespace) -> tuple[dict[str, float], int]:
    """Relative differences of loss and gradient on one batch, and the micro-batch that suits TRL best here."""
    groups = min(GROUPS_COMPARED, args.groups)
    few = replace(ours.workload, lengths=dict(list(ours.workload.lengths.items())[:groups]))
    batch = random_batch(ours, few)
    run, policy = ours.run, ours.run.learner.policy
    batch = replace(batch, sampler_logprobs_BT=frozen_logprobs(policy, batch, run.cfg, run.dist))
    cfg = replace(run.cfg, optim=replace(run.cfg.optim, max_grad_norm=0.0))
    stats = update_policy(policy, batch, torch.optim.SGD(policy.trainable().values(), lr=0.0), cfg, run.dist)
    gradients = parts.gradients(policy)
    trainer = build_trainer(model, few, folder, rows=len(batch), steps=1, device=args.device)
    loss, expected = loss_and_gradient(trainer, batch, len(batch))
    seconds = {}
    for rows in (rows for rows in MICRO_BATCHES if len(batch) % rows == 0):
        began = time.perf_counter()
        loss_and_gradient(trainer, batch, rows)
        seconds[rows] = time.perf_counter() - began
    norm = sum(g.double().square().sum() for g in expected.values()).sqrt()
    gap = sum((gradients[name] - g).double().square().sum() for name, g in expected.items()).sqrt()
    agreement = {"loss": abs(stats.loss - loss) / abs(loss), "grad": float(gap / norm)}
    return agreement, min(seconds, key=seconds.__getitem__)


def random_batch(ours: Ours, workload: Workload) -> TrainBatch:
    """Random tokens and advantages, lengths as the workload wants them."""
    policy, shape = ours.run.learner.policy, (len(workload.lengths), workload.size)
    generator = torch.Generator().manual_seed(0)
    groups = []
    for text, lengths in workload.lengths.items():
        ids = [
            torch.randint(4, len(policy.tokenizer), (min(n, workload.longest),), generator=generator) for n in lengths
        ]
        rollouts = tuple(parts.rollout(policy.encode_prompt(text), row.tolist()) for row in ids)
        group = RolloutGroup(problem=parts.problems(text)[0], rollouts=rollouts)
        nothing = [None] * workload.size
        groups.append(ScoredGroup(group=group, rewards_G=[0.0] * shape[1], correct_G=nothing, parts={}, verdicts={}))
    counts_PG, advantages_PG = torch.ones(shape, dtype=torch.bool), torch.randn(shape, generator=generator)
    return collate(groups, advantages_PG, counts_PG, positions=range(shape[0]), pad_id=policy.pad_id)


def alternate(ours: Ours, trainer: Trainer) -> Kept:
    """A step of each in turn, TRL's inside its own training loop, and one without sharing. All do the same work."""
    kept: Kept = {"ours": [], "unshared": [], "trl": []}

    def then(step: Step) -> None:
        keep("trl", step)
        keep("ours", ours.step())
        if not kept["unshared"]:
            with ours.without_sharing():
                keep("unshared", ours.step())

    def keep(name: str, step: Step) -> None:
        same_work(step, kept["trl"][0] if kept["trl"] else step)
        kept[name].append(step)
        seconds = ", ".join(f"{phase} {step.seconds[phase]:.2f} s" for phase in PHASES)
        print(f"{name}, step {len(kept[name])}: {seconds}", flush=True)

    trainer.add_callback(Each(trainer, then))
    trainer.train()
    return kept


def same_work(one: Step, two: Step) -> None:
    assert (one.updates, one.tokens) == (two.updates, two.tokens)
    torch.testing.assert_close(torch.tensor(one.rewards), torch.tensor(two.rewards), rtol=0, atol=1e-6)


def summary(steps: Kept, agreement: dict[str, float]) -> dict[str, Any]:
    """Medians over repetitions; spread: (lowest, highest). ratio: TRL's time over ours, repetition by repetition."""
    times = {name: {phase: [step.seconds[phase] for step in kept] for phase in PHASES} for name, kept in steps.items()}
    pairs = {phase: zip(times["trl"][phase], times["ours"][phase], strict=True) for phase in PHASES}
    ratios = {phase: [theirs / own for theirs, own in pairs[phase]] for phase in PHASES}
    seconds = {name: medians(phases) for name, phases in times.items()}
    return {
        "seconds": seconds,
        "ratio": medians(ratios),
        "ratio_unshared": {phase: seconds["trl"][phase] / seconds["unshared"][phase] for phase in PHASES},
        "tokens_per_s": {name: kept[0].tokens / seconds[name]["step"] for name, kept in steps.items()},
        "peak_mb": {name: max(step.peak_mb for step in kept) for name, kept in steps.items()},
        "agreement": agreement,
        "spread": {"ratio": spreads(ratios), **{name: spreads(phases) for name, phases in times.items()}},
        "cpu_seconds": {name: median(step.cpu for step in kept) for name, kept in steps.items()},
    }


def medians(phases: dict[str, list[float]]) -> dict[str, float]:
    return {phase: median(values) for phase, values in phases.items()}


def spreads(phases: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {phase: (min(values), max(values)) for phase, values in phases.items()}


def setting(args: argparse.Namespace, workload: Workload, rows: int) -> dict[str, Any]:
    names = ("model", "prompt", "completion", "device", "groups", "size", "repeats", "quick")
    return {
        **{name: getattr(args, name) for name in names},
        "tokens": workload.tokens,
        "trl_micro_batch": rows,
        "threads": torch.get_num_threads(),
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else cpu_name(),
        "commit": git_commit(),
        "versions": versions(),
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def table(result: dict[str, Any]) -> str:
    made, agreement = result["setting"], result["agreement"]
    lines = [
        f"{made['model']}, {made['device']}, {made['threads']} threads, prompt {made['prompt']}, completion "
        f"{made['completion']}: {made['groups']} x {made['size']} rows, {made['tokens']} tokens; TRL's micro-batch "
        f"{made['trl_micro_batch']} rows; {made['hardware']}; commit {made['commit']}",
        f"same batch: loss differs by {agreement['loss']:.1e}, gradient by {agreement['grad']:.1e} (relative)",
        "",
        "| | " + " | ".join(PHASES) + " | CPU | tokens/s | peak MB |",
        "|---|" + "---|" * (len(PHASES) + 3),
    ]
    for name, seconds in result["seconds"].items():
        spread = result["spread"][name]
        cells = [f"{seconds[phase]:.2f} s ({spread[phase][0]:.2f} to {spread[phase][1]:.2f})" for phase in PHASES]
        cells += [f"{result['cpu_seconds'][name]:.1f} s"]
        cells += [f"{result[column][name]:.0f}" for column in ("tokens_per_s", "peak_mb")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cpu = result["cpu_seconds"]
    for name, key in (("ours", "ratio"), ("unshared", "ratio_unshared")):
        ratios = [*(result[key][phase] for phase in PHASES), cpu["trl"] / cpu[name]]
        lines.append(f"| TRL / {name} | {' | '.join(f'**{ratio:.2f}**' for ratio in ratios)} | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
