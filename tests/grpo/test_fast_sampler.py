"""The built-in engine: every family against the reference engine and the trainer; slots, refills and budgets change
nothing. The rules of sampling are tested for both engines in test_sampling.py."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from grpo.batching import collate
from grpo.config import SamplingConfig
from grpo.errors import ConfigError
from grpo.logprobs import token_logprobs
from grpo.plan import room
from grpo.policy.attention import unsupported
from grpo.policy.load import Policy
from grpo.policy.tiny_v3 import build_tokenizer
from grpo.sampling import decode, fast
from grpo.sampling.fast import FastSampler
from grpo.sampling.reference import ReferenceSampler
from grpo.types import RolloutGroup, ScoredGroup
from tests.grpo import parts

PROMPTS = ("1 + 2 =", "User: what is 3 + 4 + 5? Assistant:", "x", "7")
DENSE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
FAMILIES: dict[str, Any] = {
    "v3": lambda folder: parts.save_sharp_model(folder),
    "v3 without query compression": lambda folder: parts.save_sharp_model(folder, q_lora_rank=None),
    "v3 in Llama's rotary layout": lambda folder: parts.save_sharp_model(folder, rope_interleave=False),
    "v3 with yarn": lambda folder: parts.save_sharp_model(folder, rope_parameters={**YARN, "mscale_all_dim": 1.0}),
    "llama": lambda folder: save_dense(folder, LlamaForCausalLM, LlamaConfig),
    "qwen2": lambda folder: save_dense(folder, Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True),
    "qwen3": lambda folder: save_dense(folder, Qwen3ForCausalLM, Qwen3Config, head_dim=16, initializer_range=0.3),
}


def save_dense(folder: Path, model: Any, config: Any, **changes: Any) -> Path:
    tokenizer = build_tokenizer()
    torch.manual_seed(1)
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    built = model(config(vocab_size=len(tokenizer), **special, **{**DENSE, **changes}))
    for name, parameter in built.named_parameters():
        if "bias" in name or "norm" in name:
            parameter.data.normal_(mean=float("norm" in name), std=0.3)
    built.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    """Loaded when first asked for."""

    class Loaded(dict):
        def __missing__(self, family: str) -> Policy:
            folder = FAMILIES[family](tmp_path_factory.mktemp("family"))
            self[family] = parts.load(parts.config(folder))
            return self[family]

    return Loaded()


@pytest.fixture(scope="module")
def policy(policies: dict[str, Policy]) -> Policy:
    return policies["v3"]


def settings(**knobs: Any) -> SamplingConfig:
    return SamplingConfig(**{"num_generations": 4, "max_completion_length": 20, **knobs})


def sample(policy: Policy, texts: Sequence[str] = PROMPTS, engine: Any = FastSampler, **knobs: Any) -> Any:
    sampler = engine(policy, settings(**knobs), seed=0, dist=parts.ONE_PROCESS)
    return sampler.sample(parts.problems(*texts), positions=range(len(texts)), round_key=0)


def completions(groups: Sequence[RolloutGroup]) -> list[tuple[Any, ...]]:
    return [(rollout.completion_ids, rollout.stop_reason) for group in groups for rollout in group.rollouts]


def trainers_gap(policy: Policy, groups: Sequence[RolloutGroup]) -> float:
    """Largest difference between the engine's log-probabilities and the trainer's."""
    size = len(groups[0])
    scored = [
        ScoredGroup(group=g, rewards_G=[0.0] * size, correct_G=[None] * size, parts={}, verdicts={}) for g in groups
    ]
    counts_PG = torch.ones(len(groups), size, dtype=torch.bool)
    batch = collate(scored, torch.zeros(counts_PG.shape), counts_PG, positions=range(len(groups)), pad_id=policy.pad_id)
    with torch.no_grad():
        logprobs_BT, _ = token_logprobs(policy, batch, 1.0)
    return float((logprobs_BT - batch.sampler_logprobs_BT)[batch.completion_mask_BT].abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_those_of_generate_and_logprobs_the_trainers(policies: dict[str, Policy], family: str) -> None:
    """Token ids: equal in all 64 completions. Log-probabilities: 1e-5."""
    policy = policies[family]
    groups = sample(policy, num_generations=16)
    assert len({len(ids) for ids, _ in completions(groups)}) > 2
    assert completions(groups) == completions(sample(policy, engine=ReferenceSampler, num_generations=16))
    assert trainers_gap(policy, groups) < 1e-5


@pytest.mark.parametrize("tokens", [30, 64, 100, 333, 10_000])
def test_slots_refills_and_compaction_change_nothing(
    policy: Policy, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one row at a time to all at once; the caches stay inside the budget."""
    texts = [f"{text} {number}" for number in range(4) for text in ("2 +", "x")]
    held: list[int] = []
    step = decode.Decoder.step

    def watched(self: decode.Decoder, tokens: torch.Tensor) -> torch.Tensor:
        logits = step(self, tokens)
        prompts = self.prompts.entries[0]
        held.append(self.own[0].shape[0] * self.own[0].shape[2] + prompts.shape[0] * prompts.shape[2])
        return logits

    whole = sample(policy, texts, max_completion_length=16)
    monkeypatch.setattr(decode.Decoder, "step", watched)
    some = sample(policy, texts, max_completion_length=16, max_tokens_in_flight=tokens)
    assert completions(some) == completions(whole)
    spare = room(settings(max_completion_length=16, max_tokens_in_flight=tokens), 4, 32)[0]
    assert max(held) <= tokens + spare  # one token a slot for the one in the making
    for one, two in zip(whole, some, strict=True):
        for a, b in zip(one.rollouts, two.rollouts, strict=True):
            assert a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=1e-5)


class Entries(TorchDispatchMode):
    """Follows how many bytes there are of tensors whose last dimension is `width`, the most of them in `peak`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.peak = width, 0
        self.storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape[-1:] == (self.width,):
            self.storages = {ref: size for ref, size in self.storages.items() if not ref.expired()}
            self.storages[StorageWeakRef(made.untyped_storage())] = made.untyped_storage().nbytes()
            self.peak = max(self.peak, sum(self.storages.values()))
        return made


def test_caches_are_there_once_and_while_they_move_a_layer_of_them_twice(tmp_path: Path) -> None:
    """Nearly all of it prompts, and so many that the slots are filled again and again."""
    layers, width = 8, 2 * 10
    folder = save_dense(tmp_path, LlamaForCausalLM, LlamaConfig, head_dim=10, num_hidden_layers=layers)
    knobs = {"num_generations": 2, "max_completion_length": 4, "max_tokens_in_flight": 700}
    with Entries(width) as entries:
        groups = sample(parts.load(parts.config(folder)), [f"{'1 + ' * 30}{n}" for n in range(12)], **knobs)
    longest = max(len(group.rollouts[0].prompt_ids) for group in groups)
    slots, prompts = room(settings(**knobs), longest, 24)
    assert slots < 12 and prompts < 8
    bound = 4 * width * 2 * layers * (slots * 4 + prompts * longest)
    assert 0.6 * bound < entries.peak < (1 + 1.5 / layers) * bound


def test_a_prompt_is_read_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where fewer rows fit than a group has, and all of them end together, at the length limit."""
    read, seen = decode.Decoder.read, []
    monkeypatch.setattr(decode.Decoder, "read", lambda self, prompts: seen.extend(prompts) or read(self, prompts))
    endless = replace(policy, eos_ids=())
    for tokens in (64, 100, 200, 10_000):
        seen.clear()
        sample(endless, num_generations=8, max_completion_length=16, max_tokens_in_flight=tokens)
        assert sorted(seen) == sorted(policy.encode_prompt(text) for text in PROMPTS), tokens


def test_caches_grow_past_their_first_block(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = sample(policy, max_completion_length=40)
    assert max(len(ids) for ids, _ in completions(usual)) == 40
    monkeypatch.setattr(decode, "FIRST_BLOCK", 3)
    for tokens in (65_536, 300):
        found = sample(policy, max_completion_length=40, max_tokens_in_flight=tokens)
        assert completions(found) == completions(usual)


@torch.no_grad()
def test_a_cache_that_grows_has_room_for_the_rows_in_flight_alone(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "FIRST_BLOCK", 2)
    decoder = decode.Decoder(policy.network, max_new=8, dtype=torch.float32)
    prompts, shapes = decoder.read([[5, 6]]), []
    for rows, steps, going in ((4, 2, 1), (1, 1, 1), (3, 1, 3)):
        decoder.place(prompts, torch.zeros(rows, dtype=torch.long))
        for _ in range(steps):
            decoder.step(torch.full((rows,), 7))
        shapes.append(decoder.own[0].shape[::2])
        decoder.keep(torch.arange(rows) < going)
    assert shapes == [(4, 2), (1, 4), (3, 4)] and decoder.lengths.tolist() == [4, 1, 1]


@pytest.mark.parametrize(
    "knobs",
    [{}, {"stop_strings": ["1", "2"]}, {"repetition_penalty": 1.5}, {"min_completion_length": 9, "top_p": 0.9}],
    ids=str,
)
def test_looking_at_tokens_now_and_then_changes_nothing(
    policy: Policy, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU rows run on for up to seven tokens after their end; here too, to see that they are cut."""
    usual = sample(policy, **knobs)
    start = fast.Flight.__init__

    def seldom(self: fast.Flight, *arguments: Any, **keys: Any) -> None:
        start(self, *arguments, **keys)
        self.check_every = fast.CHECK_EVERY

    monkeypatch.setattr(fast.Flight, "__init__", seldom)
    assert completions(sample(policy, **knobs)) == completions(usual)
    assert completions(sample(policy, max_tokens_in_flight=100, **knobs)) == completions(usual)


def test_an_end_at_every_position(policy: Policy) -> None:
    """Completions of at most 1, 2, ... tokens are those of 12, cut."""
    longest = [ids for ids, _ in completions(sample(policy, max_completion_length=12))]
    for limit in range(1, 12):
        cut = completions(sample(policy, max_completion_length=limit))
        assert [ids for ids, _ in cut] == [ids[:limit] for ids in longest]


def test_all_rows_end_at_once_and_nothing_is_asked(policy: Policy) -> None:
    every_token = replace(policy, eos_ids=tuple(range(len(policy.tokenizer))))
    assert {(len(ids), reason) for ids, reason in completions(sample(every_token))} == {(1, "eos")}
    assert sample(policy, ()) == []


def test_rows_come_as_they_end(policy: Policy) -> None:
    sampler = FastSampler(policy, settings(), seed=0, dist=parts.ONE_PROCESS)
    prompts = [policy.encode_prompt(text) for text in PROMPTS]
    keys = [(0, 0, position, sibling) for position in range(4) for sibling in range(4)]
    lengths = [{len(rollout.completion_ids) for rollout in ended.values()} for ended in sampler.rollouts(prompts, keys)]
    assert all(len(together) == 1 for together in lengths)
    assert [min(together) for together in lengths] == sorted({min(together) for together in lengths})


def test_groups_are_handed_on_before_others_have_ended(policy: Policy) -> None:
    handed: list[set[int]] = []
    short = replace(policy, eos_ids=tuple(range(2, 100)))
    sampler = FastSampler(short, settings(num_generations=2), seed=0, dist=parts.ONE_PROCESS)
    problems = parts.problems(*(f"x {number}" for number in range(12)))
    groups = sampler.sample(problems, positions=range(12), round_key=0, finished=lambda new: handed.append(set(new)))
    assert len(handed) > 1 and sum(map(len, handed)) == 12
    longest = [max(len(rollout.completion_ids) for rollout in group.rollouts) for group in groups]
    assert [{longest[index] for index in new} for new in handed] == [{length} for length in sorted(set(longest))]


class Answers(TorchDispatchMode):
    """Counts what a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["v3", "qwen3"])
@torch.no_grad()
def test_a_step_does_not_wait_for_the_device(policies: dict[str, Policy], family: str) -> None:
    decoder = decode.Decoder(policies[family].network, max_new=4, dtype=torch.float32)
    decoder.place(decoder.read([[5, 6], [7]]), torch.tensor([0, 1, 0]))
    with Answers() as answers:
        decoder.step(torch.tensor([8, 9, 10]))
        decoder.step(torch.tensor([9, 10, 11]))
    assert answers.number == 0
    with answers:
        assert decoder.keep(torch.tensor([True, False, True])).tolist() == [0, 2]
    assert answers.number > 0 and decoder.lengths.tolist() == [2, 2] and decoder.longest == 2


def test_bytes_per_token(policies: dict[str, Policy]) -> None:
    for family, numbers in (("v3", None), ("qwen3", 2 * 2 * 16)):
        network = policies[family].network
        decoder = decode.Decoder(network, max_new=4, dtype=torch.bfloat16)
        config = network.config
        numbers = numbers or config.kv_lora_rank + config.qk_rope_head_dim
        assert decoder.bytes_per_token == numbers * config.num_hidden_layers * 2


@pytest.mark.parametrize("merged", [False, True])
def test_lora_merged_or_applied(tmp_path: Path, merged: bool) -> None:
    """With adapters on every projection, the absorbed ones among them, and far from their start."""
    policy = parts.load(parts.config(FAMILIES["v3"](tmp_path), use_peft=True, lora_r=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    base = completions(sample(replace(policy, model=policy.model)))
    groups = sample(policy)
    assert trainers_gap(policy, groups) < 1e-5
    if merged:
        policy.model.merge_adapter()
        assert completions(sample(policy)) == base
        assert trainers_gap(policy, sample(policy)) < 1e-5


def test_memory_is_given_back(policy: Policy) -> None:
    sample(policy)
    gc.collect()
    before = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    for _ in range(3):
        sample(policy)
    gc.collect()
    assert sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()) <= before


def test_giving_up_between_steps_leaves_the_model_as_it_was(policy: Policy) -> None:
    calls: list[int] = []

    def between_steps() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    sampler = FastSampler(policy, settings(), seed=0, dist=parts.ONE_PROCESS, between_steps=between_steps)
    policy.model.train()
    with pytest.raises(InterruptedError):
        sampler.sample(parts.problems(*PROMPTS), positions=range(4), round_key=0)
    assert policy.model.training
    assert len(calls) == 3


class TestRefusals:
    def test_families(self, policy: Policy) -> None:
        assert unsupported(policy, parts.ONE_PROCESS) is None
        other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
        assert "not gpt2" in unsupported(replace(policy, model=other), parts.ONE_PROCESS)
        sliding = Qwen2Config(**DENSE, use_sliding_window=True, sliding_window=8, max_window_layers=1, vocab_size=16)
        assert "window" in unsupported(replace(policy, model=Qwen2ForCausalLM(sliding)), parts.ONE_PROCESS)
        dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        changing = LlamaForCausalLM(LlamaConfig(**DENSE, vocab_size=16, rope_parameters=dynamic))
        assert "dynamic" in unsupported(replace(policy, model=changing), parts.ONE_PROCESS)

    def test_a_budget_too_small(self, policy: Policy) -> None:
        with pytest.raises(ConfigError, match="max_tokens_in_flight: got 21"):
            sample(policy, ["1 + 2 ="], max_tokens_in_flight=21)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("prompt", [1, 50, 500])
@pytest.mark.parametrize("budget", [600, 5_000, 100_000])
def test_room_fills_the_budget_and_no_more(size: int, prompt: int, budget: int) -> None:
    cfg = settings(num_generations=size, max_completion_length=100, max_tokens_in_flight=budget)
    slots, prompts = room(cfg, prompt, num_rows=10**6)
    assert slots * 100 + prompts * prompt <= budget
    more = slots + 1
    assert (
        more * 100 + max(1, -(-2 * more // size)) * prompt > budget or slots * (100 + 2 * prompt / size) > 0.8 * budget
    )
    assert room(cfg, prompt, num_rows=3)[0] <= 3
