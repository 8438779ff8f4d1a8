"""bfloat16 is for the forward pass alone: weights, gradients and optimizer stay fp32, and sampling casts nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from grpo.distributed import Dist
from grpo.learner import Learner
from grpo.policy.attention import normalised
from grpo.policy.experts import feed_forward
from tests.grpo.distributed_process import Record, config, learner_of, problems, run_rollout

CASE = "three_problems"


def trained(model: Path, out: Path, **changes: Any) -> tuple[Learner, Record]:
    learner, record = learner_of(config(CASE, model, out, **changes), Dist()), Record()
    for rollout in range(2):
        run_rollout(learner, rollout, record, CASE)
    return learner, record


def computed_in(learner: Learner) -> tuple[Counter[torch.dtype], Counter[torch.dtype]]:
    """(types of what every linear layer puts out, types of what every gate puts out), filled while the model runs."""
    layers: Counter[torch.dtype] = Counter()
    gates: Counter[torch.dtype] = Counter()
    for name, module in learner.policy.model.named_modules():
        if name.endswith("mlp.gate"):
            module.register_forward_hook(lambda _m, _i, out: gates.update([out[0].dtype]))
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _m, _i, out: layers.update([out.dtype]))
    return layers, gates


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_forward_computes_in_the_configured_type_and_the_gates_in_fp32(
    tiny_model: Path, tmp_path: Path, dtype: str, expected: torch.dtype
) -> None:
    learner = learner_of(config(CASE, tiny_model, tmp_path, dtype=dtype), Dist())
    layers, gates = computed_in(learner)
    run_rollout(learner, 0, Record(), CASE)
    assert set(layers) == {expected} and layers.total() > 100
    assert set(gates) == {torch.float32} and gates.total() > 20


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
@pytest.mark.parametrize("sampler", ["fast", "reference"])
def test_experts_multiply_in_the_configured_type_whatever_the_batch(
    tiny_model: Path, tmp_path: Path, dtype: str, expected: torch.dtype, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling, where there are few tokens, as in the update, where there are many."""
    learner, operands = learner_of(config(CASE, tiny_model, tmp_path, dtype=dtype, sampler=sampler), Dist()), Counter()

    def watched(product: Any) -> Any:
        def call(x: torch.Tensor, weight: torch.Tensor, **more: Any) -> torch.Tensor:
            result = product(x, weight, **more)
            operands.update([x.dtype, weight.dtype, result.dtype])
            return result

        return call

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", watched(torch.nn.functional.grouped_mm))
    run_rollout(learner, 0, Record(), CASE)
    assert set(operands) == {expected} and operands.total() > 20


def test_experts_are_computed_as_transformers_computes_them_in_bf16(tiny_model: Path, tmp_path: Path) -> None:
    """Within the roundings of bf16, which keeps 8 bits."""
    policy = learner_of(config(CASE, tiny_model, tmp_path, dtype="bfloat16"), Dist()).policy
    mlp, x = policy.network.model.layers[-1].mlp, torch.randn(9, policy.network.config.hidden_size)
    mlp.shared_experts = nn.Identity()

    def routed(compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        return compute() - x

    with torch.no_grad():
        exact = routed(lambda: feed_forward(mlp, x))
        with policy.autocast():
            ours, theirs = routed(lambda: feed_forward(mlp, x)), routed(lambda: mlp(x[None])[0])
    for rounded in (ours, theirs):
        assert 1e-4 < float((rounded - exact).norm() / exact.norm()) < 1e-2


@pytest.mark.filterwarnings("error")
@torch.no_grad()
def test_a_norm_of_bf16_is_the_models_own_and_has_a_fused_kernel(tiny_model: Path, tmp_path: Path) -> None:
    policy = learner_of(config(CASE, tiny_model, tmp_path, dtype="bfloat16"), Dist()).policy
    norm, x = policy.network.model.layers[0].self_attn.kv_a_layernorm, torch.randn(9, 32).bfloat16()
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch says once a process that it does without the kernel
    try:
        ours, theirs = normalised(norm, x), norm(x)
    finally:
        torch.set_warn_always(before)
    assert ours.dtype == theirs.dtype == torch.float32
    assert float((ours - theirs).norm() / theirs.norm()) < 2**-8  # theirs is rounded to bf16 on the way


def test_a_round_of_sampling_casts_a_weight_once(tiny_model: Path, tmp_path: Path) -> None:
    learner = learner_of(config(CASE, tiny_model, tmp_path, dtype="bfloat16"), Dist())
    weight = list(learner.policy.network.lm_head.weight.shape)
    with torch.profiler.profile(record_shapes=True) as profile:
        learner.sampler.sample(problems(2), positions=range(2), round_key=0)
    casts = [event for event in profile.events() if event.name == "aten::_to_copy" and event.input_shapes[0] == weight]
    assert len(casts) == 1


@pytest.mark.parametrize("changes", [{}, {"use_peft": True}, {"gradient_checkpointing": True}], ids=str)
def test_nothing_that_lasts_is_cast(tiny_model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    learner, record = trained(tiny_model, tmp_path, dtype="bfloat16", beta=0.1, **changes)
    assert {p.dtype for p in learner.policy.model.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in record.tensors.values()} == {torch.float32}  # gradients
    states = [value for state in learner.optimizer.state.values() for value in state.values()]
    assert states and {value.dtype for value in states} == {torch.float32}
    assert learner.reference is not None
    assert {kept.dtype for kept in learner.reference.weights.values()} == {torch.float32}


def test_sampling_leaves_every_weight_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    learner = learner_of(config(CASE, tiny_model, tmp_path, dtype="bfloat16"), Dist())
    state = learner.policy.model.state_dict()
    before = {name: (value.data_ptr(), value.clone()) for name, value in state.items()}
    learner.sampler.sample(problems(3), positions=range(3), round_key=0)
    after = learner.policy.model.state_dict()
    assert after.keys() == before.keys()
    for name, (place, value) in before.items():
        assert after[name].data_ptr() == place and torch.equal(after[name], value), name


def test_the_bf16_gradient_is_the_fp32_one_to_bf16_precision(tiny_model: Path, tmp_path: Path) -> None:
    """bf16 keeps 8 bits: a relative error of some 1e-2 is rounding, 0.5 would be another gradient."""
    _, exact = trained(tiny_model, tmp_path, seed=4)
    _, rounded = trained(tiny_model, tmp_path, seed=4, dtype="bfloat16")
    assert rounded.facts[CASE][0]["rewards"] == exact.facts[CASE][0]["rewards"], "the first draws differ: choose a seed"
    names = [name for name in exact.tensors if name.startswith(f"{CASE}/0/")]
    gap = sum((rounded.tensors[name] - exact.tensors[name]).pow(2).sum().item() for name in names) ** 0.5
    size = sum(exact.tensors[name].pow(2).sum().item() for name in names) ** 0.5
    assert 1e-5 < gap / size < 0.05
