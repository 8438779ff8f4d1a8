"""The plain call: the same completions as the engines' own, whatever the prompts are given as."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from grpo.errors import ConfigError
from grpo.policy.load import routers
from grpo.sampling import generate
from grpo.types import Rollout
from tests.grpo import parts

PROMPTS = ["1 + 2 =", "User: what is 3 + 4 + 5? Assistant:", "x"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = parts.save_sharp_model(tmp_path_factory.mktemp("sharp"))
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def tokens(found: list[list[Rollout]]) -> list[list[tuple[int, ...]]]:
    return [[rollout.completion_ids for rollout in rollouts] for rollouts in found]


def test_greedy_is_what_transformers_generates(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    found = generate(model, tokenizer, PROMPTS, temperature=0, max_completion_length=12)
    for prompt, (rollout,) in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        theirs = model.generate(input_ids=ids, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        assert list(rollout.completion_ids) == theirs.tolist()
        assert rollout.text == tokenizer.decode(theirs, skip_special_tokens=True)


def test_prompts_are_texts_messages_or_ids(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    keys: dict[str, Any] = {"n": 3, "max_completion_length": 10, "seed": 4}
    texts = tokens(generate(model, tokenizer, PROMPTS, **keys))
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert tokens(generate(model, tokenizer, messages, **keys)) == texts
    assert tokens(generate(model, tokenizer, [tokenizer(p)["input_ids"] for p in PROMPTS], **keys)) == texts
    assert [len(rollouts) for rollouts in texts] == [3, 3, 3]


def test_the_draws_depend_on_the_seed_and_on_the_numbers_alone(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    keys: dict[str, Any] = {"max_completion_length": 10, "top_p": 0.95}
    four = tokens(generate(model, tokenizer, PROMPTS, n=4, seed=1, **keys))
    assert tokens(generate(model, tokenizer, PROMPTS[:2], n=2, seed=1, **keys)) == [rows[:2] for rows in four[:2]]
    assert tokens(generate(model, tokenizer, PROMPTS, n=4, seed=2, **keys)) != four


def test_a_policy_brings_its_tokenizer_and_both_engines_agree(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    policy = parts.load(parts.config(model.name_or_path))
    keys: dict[str, Any] = {"n": 2, "max_completion_length": 10}
    ours = tokens(generate(policy, None, PROMPTS, **keys))
    assert ours == tokens(generate(model, tokenizer, PROMPTS, **keys))
    assert ours == tokens(generate(model, tokenizer, PROMPTS, sampler="reference", **keys))


def test_a_family_that_the_engine_does_not_know_is_sampled_by_transformers(
    loaded: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _, tokenizer = loaded
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    known = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    unknown = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pretraining_tp=1, mlp_bias=True, **shape)).eval()
    unknown.config.model_type = "somebody_elses"
    for model, said in ((known, ""), (unknown, "sampled by transformers' generate; the fast one cannot")):
        ((rollout,),) = generate(model, tokenizer, PROMPTS[:1], max_completion_length=5)
        assert 0 < len(rollout.completion_ids) <= 5
        assert capsys.readouterr().out.startswith(said)


def test_values_longer_than_keys_are_sampled_by_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention over a pack pads values to the length of keys."""
    folder = parts.save_sharp_model(tmp_path, v_head_dim=40)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = generate(model, tokenizer, PROMPTS, n=2, max_completion_length=8)
    assert "because the model's values are longer than its keys" in capsys.readouterr().out
    assert tokens(found) == tokens(
        generate(model, tokenizer, PROMPTS, n=2, max_completion_length=8, sampler="reference")
    )


def test_a_model_over_several_devices_is_sampled_by_transformers(
    loaded: tuple[Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is one: accelerate's hooks fetch a layer's weights when its forward is called."""
    model, tokenizer = loaded
    names = ["model.embed_tokens", "model.layers.0", "model.layers.2", "model.norm", "model.rotary_emb", "lm_head"]
    keys: dict[str, Any] = {"n": 2, "max_completion_length": 8}
    for place, said in (("disk", "because the model's layers are on several devices"), ("cpu", "")):
        spread = AutoModelForCausalLM.from_pretrained(
            model.name_or_path,
            device_map={**dict.fromkeys(names, "cpu"), "model.layers.1": place},
            offload_folder=tmp_path,
        )
        assert tokens(generate(spread, tokenizer, PROMPTS, **keys)) == tokens(
            generate(model, tokenizer, PROMPTS, **keys)
        )
        assert said in (out := capsys.readouterr().out) and bool(said) == bool(out)


def test_stop_strings_end_a_completion(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    (whole,), _ = generate(model, tokenizer, PROMPTS[:2], temperature=0, max_completion_length=12)
    stop = whole.text[3:5]
    (cut,), _ = generate(model, tokenizer, PROMPTS[:2], temperature=0, max_completion_length=12, stop_strings=[stop])
    assert cut.stop_reason == "stop" and stop in cut.text and whole.text.startswith(cut.text) and cut.text != whole.text


def test_inside_a_callers_autocast(loaded: tuple[Any, Any]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = generate(*loaded, PROMPTS, n=2, max_completion_length=6)
    assert all(0 < len(rollout.completion_ids) <= 6 for rollouts in found for rollout in rollouts)


def test_a_model_in_low_precision_stays_what_it_is(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    low = deepcopy(model).to(torch.bfloat16)
    ((rollout,),) = generate(low, tokenizer, PROMPTS[:1], max_completion_length=6)
    assert 0 < len(rollout.completion_ids) <= 6
    assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("sampler", "tolerance"), [("reference", 5e-3), ("fast", 5e-2)])
def test_a_model_in_low_precision_chooses_the_experts_of_its_own_forward(
    loaded: tuple[Any, Any], sampler: str, tolerance: float
) -> None:
    """Whatever a router is given while sampling, it answers bit for bit as outside; and log-probabilities, nats, are
    those of the plain forward, in the mean: where bf16 tips a router over, a token is far off."""
    model, tokenizer = loaded
    low = deepcopy(model).to(torch.bfloat16)
    for module in low.modules():  # as from_pretrained leaves it
        if "e_score_correction_bias" in module._buffers:
            module.e_score_correction_bias = module.e_score_correction_bias.float()
    before, asked = parts.fingerprint(low), []
    hooks = [r.register_forward_hook(lambda *call: asked.append(call)) for r in routers(low)]
    found = generate(low, tokenizer, PROMPTS, n=8, max_completion_length=12, sampler=sampler)
    for hook in hooks:
        hook.remove()
    gaps = []
    with torch.no_grad():
        assert asked
        for router, given, answer in asked:
            assert all(map(torch.equal, router(*given), answer))
        for rollout in (rollout for rollouts in found for rollout in rollouts):
            start, ids = len(rollout.prompt_ids), torch.tensor([rollout.prompt_ids + rollout.completion_ids])
            own_TV = low(input_ids=ids).logits[0, start - 1 : -1].float().log_softmax(-1)
            own_T = own_TV.gather(1, ids[0, start:, None])[:, 0]
            gaps.append((own_T - torch.tensor(rollout.sampler_logprobs)).abs())
    assert torch.cat(gaps).mean() < tolerance
    assert parts.fingerprint(low) == before
    assert not any("forward" in vars(router) for router in routers(low)), "the model is its caller's"


def test_nothing_to_do(loaded: tuple[Any, Any]) -> None:
    assert generate(*loaded, []) == []


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        (["x"], {"n": 0}, "num_generations: got 0; allowed: at least 1"),
        (["x"], {"temperature": -0.5}, "temperature: got -0.5"),
        (["x"], {"topp": 0.9}, "unknown key 'topp'. Did you mean 'top_p'"),
        (["x"], {"max_completion_length": 0}, "max_completion_length: got 0"),
        (["x", []], {}, "prompt 1 has no tokens"),
        ([[5] * 9000], {}, "a prompt has 9000 tokens, the model's context is"),
        ([[5] * 9000], {"sampler": "reference"}, "a prompt has 9000 tokens, the model's context is"),
    ],
)
def test_what_cannot_be_is_refused(
    loaded: tuple[Any, Any], prompts: list[Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(*loaded, prompts, **settings)
