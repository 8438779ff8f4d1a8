"""The feed-forward part against transformers' own forward of it."""

from copy import deepcopy

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP, DeepseekV3MoE

from grpo.policy.experts import drop_group_masks, feed_forward
from grpo.policy.tiny_v3 import build_tokenizer, tiny_v3_config

SIZES = {
    "few": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "groups": {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "n_shared_experts": 2},
    "one": {"n_routed_experts": 8, "num_experts_per_tok": 1, "norm_topk_prob": False, "routed_scaling_factor": 2.5},
}


def layer(**sizes: object) -> DeepseekV3MoE:
    torch.manual_seed(0)
    made = DeepseekV3MoE(tiny_v3_config(build_tokenizer(), **sizes)).float()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.gate.e_score_correction_bias.copy_(torch.randn(made.gate.num_experts))
    return made


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("tokens", [1, 2, 31])
def test_values_and_gradients_are_transformers(sizes: dict, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x = layer(**sizes), torch.randn(tokens, 64, requires_grad=True)
    asked = []
    monkeypatch.setattr(type(mlp.experts), "forward", lambda *given: asked.append(given))
    ours = feed_forward(mlp, x)
    assert not asked  # the experts' own forward is not what this tests
    monkeypatch.undo()
    theirs = mlp(x[None])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    wanted, direction = [x, *mlp.parameters()], torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, wanted, direction, retain_graph=True) for out in (ours, theirs)]
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [*SIZES.values(), {"n_group": 2, "topk_group": 2}], ids=[*SIZES, "all groups"])
def test_a_gate_without_group_masks_answers_bit_for_bit(sizes: dict) -> None:
    gate, x = layer(**sizes).gate, torch.randn(50, 64, requires_grad=True)
    (asked, ours), theirs = answers(gate, x, drop=True), answers(gate, x, drop=False)[1]
    assert asked == (gate.num_group == gate.topk_group)
    for our, their in zip(ours, theirs, strict=True):
        assert our.equal(their)


def answers(gate: torch.nn.Module, x: torch.Tensor, *, drop: bool) -> tuple[bool, list[torch.Tensor]]:
    """Whether the gate has another forward than its class's; what it answers, and the gradients of its weights."""
    gate = deepcopy(gate)
    if drop:
        drop_group_masks(gate)
    answer = gate(x)
    return "forward" in vars(gate), [*answer, *torch.autograd.grad(answer[1].pow(2).sum(), [x, gate.weight])]


def test_layers_without_experts_are_themselves() -> None:
    dense, x = DeepseekV3MLP(tiny_v3_config(build_tokenizer())), torch.randn(3, 64)
    assert feed_forward(dense, x).equal(dense(x))
