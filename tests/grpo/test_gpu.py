"""What only a CUDA device can show: bf16 compute over fp32 weights, adapters, resume, and several GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpo.checkpoint.store import find_checkpoints, open_checkpoint
from grpo.distributed import Dist
from grpo.learner import Learner
from grpo.loop import run
from grpo.monitor.metrics import read_lines, read_metrics
from grpo.sharding import whole
from grpo.step import sample_and_score, update_policy
from tests.grpo import distributed_process
from tests.grpo.distributed_process import CASES, LOW_PRECISION, Record, learner_of, problems, run_rollout
from tests.grpo.launching import one_process, outcome_of, relative_error
from tests.grpo.tiny_runs import FULL, LORA, config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CASE = "three_problems"


def learner_on(device: str, model: Path, out: Path, **changes: Any) -> Learner:
    return learner_of(distributed_process.config(CASE, model, out, **changes), Dist(device=torch.device(device)))


def updates(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run_dir) if "loss" in line]


def test_the_default_on_a_gpu_is_bf16_over_fp32_weights(tiny_model: Path, tmp_path: Path) -> None:
    learner, record = learner_on("cuda", tiny_model, tmp_path, dtype="auto", beta=0.1), Record()
    assert learner.policy.compute_dtype == torch.bfloat16
    outputs = []
    learner.policy.model.lm_head.register_forward_hook(lambda _m, _i, out: outputs.append(out.dtype))
    for rollout in range(2):
        run_rollout(learner, rollout, record, CASE)
    assert set(outputs) == {torch.bfloat16}
    assert {(p.dtype, p.device.type) for p in learner.policy.model.parameters()} == {(torch.float32, "cuda")}
    assert {tensor.dtype for tensor in record.tensors.values()} == {torch.float32}
    moments = [v for state in learner.optimizer.state.values() for key, v in state.items() if key != "step"]
    assert moments and {moment.dtype for moment in moments} == {torch.float32}


def test_the_gradient_of_a_batch_is_that_of_the_cpu(tiny_model: Path, tmp_path: Path) -> None:
    """One batch, sampled on the CPU, on both devices in fp32."""
    gradients = {}
    cpu = learner_on("cpu", tiny_model, tmp_path)
    state = SimpleNamespace(global_step=0)
    batch = sample_and_score(cpu, problems(3), rollout=0, trainer_state=state).batch
    for learner in (cpu, learner_on("cuda", tiny_model, tmp_path)):
        device, fresh = learner.policy.device, replace(batch, old_logprobs_BT=None)
        stats = update_policy(learner.policy, fresh, learner.optimizer, learner.cfg, learner.dist)
        assert stats.applied
        trainable = learner.policy.trainable()
        gradients[device.type] = torch.cat([whole(p.grad).flatten() for p in trainable.values()])
    gap = (gradients["cuda"] - gradients["cpu"]).norm() / gradients["cpu"].norm()
    assert gap < 1e-3


@pytest.mark.parametrize(("dtype", "mean", "largest"), [("float32", 1e-4, 1e-2), ("bfloat16", 2e-2, 0.5)])
def test_the_sampler_and_the_trainer_agree(
    tiny_model: Path, tmp_path: Path, dtype: str, mean: float, largest: float
) -> None:
    """Nats between what `generate` drew with and what one forward over the row says; bf16 keeps 8 bits."""
    run_dir = tmp_path / "run"
    assert run(config(tiny_model, run_dir, **FULL, dtype=dtype, eval_steps=0, eval_on_start=False)) == 0
    lines = updates(run_dir)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert max(line["sampler_gap/mean"] for line in lines) < mean
    assert max(line["sampler_gap/max"] for line in lines) < largest
    weights = load_file(run_dir / "final" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    AutoModelForCausalLM.from_pretrained(run_dir / "final")


@pytest.mark.parametrize("changes", [FULL, LORA], ids=["full", "lora"])
def test_a_run_goes_on_from_its_checkpoint(tiny_model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Not bit for bit, which the run says: a GPU adds up in no fixed order."""
    run_dir = tmp_path / "run"
    assert run(config(tiny_model, run_dir, **changes, max_steps=4)) == 0
    saved = open_checkpoint(find_checkpoints(run_dir)[0])
    assert saved.step == 4
    assert run(config(tiny_model, run_dir, **changes, max_steps=8, resume="must")) == 0
    assert [line["step"] for line in updates(run_dir)] == list(range(1, 9))
    assert {line["exactness"] for line in read_lines(run_dir / "rollouts.jsonl")} == {"same_experience"}
    AutoModelForCausalLM.from_pretrained(run_dir / "final")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_gpus_have_the_gradients_of_one(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """In fp32; looser than on CPUs, where sums are taken in nearly the same order."""
    ours, theirs = outcome_of(kind, tiny_model, tmp_path / kind), one_process(tiny_model, tmp_path, "cuda")
    for case in CASES:
        first = [facts[case][0]["rewards"] for facts in (*ours.facts, *theirs.facts)]
        assert first == [first[0]] * 3
        assert relative_error(ours, theirs, f"{case}/0/") < 1e-3
    for case in LOW_PRECISION:
        assert relative_error(ours, theirs, f"{case}/") < 3e-2
    assert [facts["place"]["sharded"] > 0 for facts in ours.facts] == [kind == "fsdp2"] * 2
