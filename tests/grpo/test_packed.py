"""Packed forwards against the padded twin: log-probabilities, entropies, loss and gradient, for every family."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from grpo import logprobs, step
from grpo.batching import collate, microbatches
from grpo.distributed import Dist
from grpo.logprobs import token_logprobs
from grpo.packing import pack
from grpo.policy.branching import by_rows, by_stretches
from grpo.policy.load import Policy
from grpo.policy.packed import unpackable
from grpo.signals import Interrupted
from grpo.step import frozen_logprobs, packs, update_policy, with_frozen_logprobs
from grpo.types import RolloutGroup, ScoredGroup, TrainBatch
from tests.grpo import parts
from tests.grpo.parts import ONE_PROCESS
from tests.grpo.test_fast_sampler import FAMILIES


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved when first asked for."""

    class Saved(dict):
        def __missing__(self, family: str) -> Path:
            self[family] = FAMILIES[family](tmp_path_factory.mktemp("family"))
            return self[family]

    return Saved()


@pytest.fixture(scope="module")
def policy(folders: dict[str, Path]) -> Policy:
    return parts.load(parts.config(folders["v3"]))


def batch_of(policy: Policy, **shape: int) -> TrainBatch:
    return parts.random_batch(policy, **{"num_groups": 5, "group_size": 4, "longest": 20, **shape})


def batch_by_hand(*groups: tuple[list[int], list[list[int]]]) -> TrainBatch:
    """(prompt, completions) of each group, all of one size; random advantages."""
    scored = []
    for prompt, completions in groups:
        rows = tuple(parts.rollout(prompt, completion) for completion in completions)
        group = RolloutGroup(problem=parts.problems("question")[0], rollouts=rows)
        nothing = [None] * len(rows)
        scored.append(ScoredGroup(group=group, rewards_G=[0.0] * len(rows), correct_G=nothing, parts={}, verdicts={}))
    shape = (len(groups), len(groups[0][1]))
    advantages_PG = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    counts_PG = torch.ones(shape, dtype=torch.bool)
    return collate(scored, advantages_PG, counts_PG, positions=range(len(groups)), pad_id=0)


def off_policy(policy: Policy, batch: TrainBatch, *, with_kl: bool) -> TrainBatch:
    now_BT = frozen_logprobs(policy, batch, parts.config("unused"), ONE_PROCESS)
    noise_2BT = 0.4 * torch.randn(2, *now_BT.shape, generator=torch.Generator().manual_seed(3))
    ref_BT = now_BT + noise_2BT[1] if with_kl else None
    return replace(batch, old_logprobs_BT=now_BT + noise_2BT[0], ref_logprobs_BT=ref_BT)


def updated(policy: Policy, batch: TrainBatch, update: str, **keys: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    cfg = parts.config("unused", update=update, max_grad_norm=0.0, **keys)
    stats = update_policy(policy, batch, torch.optim.SGD(policy.trainable().values(), lr=0.0), cfg, ONE_PROCESS)
    assert stats.applied
    return stats, parts.gradients(policy)


def assert_same_update(policy: Policy, batch: TrainBatch, relative: float = 1e-5, **keys: Any) -> None:
    stats, gradients = updated(policy, batch, "packed", **keys)
    expected, expected_gradients = updated(policy, batch, "padded", **keys)
    assert stats.metrics() == pytest.approx(expected.metrics(), rel=10 * relative, abs=relative)
    parts.assert_same_gradients(expected_gradients, gradients, relative)


def assert_same_scores(policy: Policy, batch: TrainBatch, temperature: float = 1.0) -> None:
    packed, padded = (token_logprobs(policy, batch, temperature, packed=packed) for packed in (True, False))
    for one, two in zip(packed, padded, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
        assert two.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(folders: dict[str, Path], family: str) -> None:
    policy = parts.load(parts.config(folders[family]))
    batch = batch_of(policy)
    assert packs(policy, parts.config("unused"), ONE_PROCESS)
    assert_same_scores(policy, batch, temperature=0.7)
    assert_same_update(policy, batch)


@pytest.mark.parametrize("family", ["v3", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
def test_lora(folders: dict[str, Path], family: str, checkpointing: bool) -> None:
    """Adapters far from their start, on every projection that peft takes."""
    keys = {"use_peft": True, "lora_r": 4, "gradient_checkpointing": checkpointing}
    policy = parts.load(parts.config(folders[family], **keys))
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert_same_update(policy, batch_of(policy))


@pytest.mark.parametrize("family", ["v3", "llama"])
def test_gradient_checkpointing(folders: dict[str, Path], family: str) -> None:
    """Against the padded twin without it; every layer runs twice."""
    policy = parts.load(parts.config(folders[family], gradient_checkpointing=True))
    calls: list[str] = []
    for layer in policy.network.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda *_: calls.append("forward"))
    batch = batch_of(policy)
    _, gradients = updated(policy, batch, "packed")
    assert len(calls) == 2 * len(policy.network.model.layers)
    _, expected = updated(parts.load(parts.config(folders[family])), batch, "padded")
    parts.assert_same_gradients(expected, gradients, 1e-5)


class TestWhateverTheCut:
    @pytest.mark.parametrize("with_kl", [False, True], ids=["", "kl"])
    @pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
    def test_micro_batches(self, policy: Policy, loss_type: str, with_kl: bool) -> None:
        """One row at a time, groups split over several, groups together, all in one."""
        batch = off_policy(policy, batch_of(policy), with_kl=with_kl)
        keys = {"loss_type": loss_type, "epsilon_high": 1.2, "beta": 0.3 * with_kl}
        expected, expected_gradients = updated(policy, batch, "padded", **keys)
        numbers = []
        for tokens in (1, 40, 100, 10_000):
            numbers.append(len(microbatches(batch, tokens, packed=True)))
            stats, gradients = updated(policy, batch, "packed", max_tokens_per_microbatch=tokens, **keys)
            assert stats.metrics() == pytest.approx(expected.metrics(), rel=1e-4, abs=1e-5)
            parts.assert_same_gradients(expected_gradients, gradients, 1e-5)
        assert numbers[0] == len(batch) and numbers[-1] == 1 and numbers == sorted(set(numbers), reverse=True)

    def test_minibatches_of_rows_in_any_order(self, policy: Policy) -> None:
        batch = batch_of(policy)
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
        for rows in order.split(7):
            assert_same_update(policy, batch.rows(rows))

    def test_frozen_logprobs_find_their_rows(self, policy: Policy) -> None:
        batch = batch_of(policy)
        packed, padded = (
            frozen_logprobs(policy, batch, parts.config("x", update=update, max_tokens_per_microbatch=90), ONE_PROCESS)
            for update in ("packed", "padded")
        )
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-5)


class TestRowsOfAllKinds:
    def test_prompts_and_completions_of_one_token(self, policy: Policy) -> None:
        assert_same_update(policy, batch_by_hand(([5], [[6], [7]])))
        assert_same_update(policy, batch_by_hand(([5], [[6], [7, 8, 9]]), ([6, 7, 8], [[9, 10], [11]])))
        assert_same_update(policy, batch_by_hand(([5, 6, 7], [[6], [7]]), ([8], [[9, 10, 11], [9, 10, 12]])))

    def test_the_same_prompt_in_two_groups_is_one(self, policy: Policy) -> None:
        batch = batch_by_hand(([5, 6], [[7, 8], [9]]), ([5, 6], [[9, 10], [11]]))
        assert len(pack(batch).prompts) == 1
        assert_same_update(policy, batch)

    def test_holes_in_the_mask_and_rows_without_counted_tokens(self, policy: Policy) -> None:
        batch = batch_of(policy)
        mask_BT = batch.completion_mask_BT & (
            torch.rand(batch.completion_mask_BT.shape, generator=torch.Generator().manual_seed(1)) < 0.6
        )
        mask_BT[[0, 5, 6, 7, 8]] = False
        batch = replace(batch, completion_mask_BT=mask_BT)
        assert_same_scores(policy, batch)
        assert_same_update(policy, batch)

    def test_nothing_counted(self, policy: Policy) -> None:
        batch = batch_of(policy)
        nothing = replace(batch, completion_mask_BT=torch.zeros_like(batch.completion_mask_BT))
        logprobs_BT, entropy_BT = token_logprobs(policy, nothing, 1.0, packed=True)
        assert not logprobs_BT.any() and not entropy_BT.any()
        logprobs_BT.sum().backward()
        policy.model.zero_grad()

    def test_what_stands_in_the_padding_changes_nothing_bitwise(self, policy: Policy) -> None:
        batch = batch_of(policy)
        pad_BL = torch.arange(batch.input_ids_BL.shape[1]) >= batch.lengths_B[:, None]
        junk = replace(batch, input_ids_BL=batch.input_ids_BL.where(~pad_BL, 7))
        before, after = (token_logprobs(policy, b, 1.0, packed=True) for b in (batch, junk))
        assert pad_BL.any() and all(one.equal(two) for one, two in zip(before, after, strict=True))


def test_every_token_once(policy: Policy) -> None:
    """What the layers see: each prompt, and each completion but its last token."""
    seen: list[int] = []
    handle = policy.network.model.layers[1].self_attn.o_proj.register_forward_pre_hook(
        lambda _, x: seen.append(len(x[0]))
    )
    batch = batch_of(policy)
    updated(policy, batch, "packed")
    handle.remove()
    prompts = batch.prompt_lengths_B[::4].sum()
    assert seen == [int(prompts + (batch.lengths_B - batch.prompt_lengths_B - 1).sum())]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=4))
def test_attention_along_the_branches(lengths: list[tuple[int, int, int]]) -> None:
    """Both ways against one softmax per token over the tokens before it in its row; values and gradients, also after
    sampling, which asks in inference mode."""
    groups = [([5 + p] * prompt, [[9] * one, [9] * two]) for p, (prompt, one, two) in enumerate(lengths)]
    tokens = pack(batch_by_hand(*groups))
    generator, number = torch.Generator().manual_seed(0), len(tokens.ids_N)
    q, k, v, weights = (torch.randn(number, 3, 8, generator=generator) for _ in range(4))
    visible_NN = torch.zeros(number, number, dtype=torch.bool)
    for (start, end), owns in zip(tokens.prompts, tokens.completions, strict=True):
        for own in owns:
            row = [*range(start, end), *range(*own)]
            for place, token in enumerate(row):
                visible_NN[token, row[: place + 1]] = True

    def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> torch.Tensor:
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.4
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible_NN, -torch.inf).softmax(-1), v)

    found = []
    for way in (by_hand, by_stretches, by_rows):
        with torch.inference_mode():
            way(q, k, v, tokens, 0.4)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        mixed = way(*leaves, tokens, 0.4)
        (mixed * weights).sum().backward()
        found.append([mixed.detach(), *(leaf.grad for leaf in leaves)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_by_rows_is_what_other_devices_run(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.policy.branching.by_stretches", by_rows)
    assert_same_update(policy, batch_of(policy))


class Largest(TorchDispatchMode):
    """The most numbers that any tensor holds that is made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *made])
        return result


class TestHead:
    VOCABULARY = 129_280  # DeepSeek-V3's
    HIDDEN = 8

    @pytest.fixture(scope="class")
    @classmethod
    def wide(cls, policy: Policy) -> Policy:
        """DeepSeek-V3's vocabulary on next to nothing else, so that the head's tensors are the largest ones."""
        config = Qwen3Config(
            vocab_size=cls.VOCABULARY, hidden_size=cls.HIDDEN, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, head_dim=8,
        )  # fmt: skip
        return replace(policy, model=Qwen3ForCausalLM(config))

    def test_never_holds_tokens_by_vocabulary(self, wide: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        """Forward and backward: no tensor larger than a chunk or the weight, and at most three chunks alive."""
        batch = batch_by_hand(([5, 6], [[9] * 100, [10] * 100]))
        chunk = 16 * self.VOCABULARY
        monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", chunk)
        with Largest() as largest:
            token_logprobs(wide, batch, 0.9, packed=True)[0].sum().backward()
        assert largest.numbers == chunk < int(batch.completion_mask_BT.sum()) * self.VOCABULARY / 10
        wide.model.zero_grad()
        weight = self.VOCABULARY * self.HIDDEN
        assert peak_bytes(lambda: token_logprobs(wide, batch, 0.9, packed=True)[0].sum().backward()) < 4 * (
            3.1 * chunk + 6 * weight
        )

    @pytest.mark.normal
    def test_peak_at_the_vocabulary_of_deepseek_v3(self, wide: Policy) -> None:
        """At 129,280 entries and chunks as they are: three chunks of 128 MiB, however many tokens; one tensor of
        [tokens, vocabulary] would be 620 MB here, and an ordinary softmax with its gradient holds three."""
        batch = batch_by_hand(([5, 6], [[9] * 600, [10] * 600]))
        peak = peak_bytes(lambda: token_logprobs(wide, batch, 0.9, packed=True)[0].sum().backward())
        assert peak < 3.1 * 128 * 2**20 + 4 * 6 * self.VOCABULARY * self.HIDDEN
        wide.model.zero_grad()

    def test_chunks_change_nothing(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        batch = batch_of(policy)
        assert int(batch.completion_mask_BT.sum()) > 100
        _, whole = updated(policy, batch, "packed")
        monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 7 * policy.network.config.vocab_size)
        assert_same_scores(policy, batch, temperature=0.7)
        parts.assert_same_gradients(whole, updated(policy, batch, "packed")[1], 1e-6)

    def test_chunks_add_up_their_gradients_in_fp32(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        """In bf16 the head's gradient in 70 chunks is within 0.3 % of that in one: a sum in bf16 is 0.7 % off."""
        batch, low = batch_of(policy), replace(policy, compute_dtype=torch.bfloat16)
        whole = updated(low, batch, "packed")[1]["lm_head.weight"]
        monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", 3 * policy.network.config.vocab_size)
        cut = updated(low, batch, "packed")[1]["lm_head.weight"]
        assert 0 < float((cut - whole).norm() / whole.norm()) < 0.003


def peak_bytes(work: Any) -> int:
    """The most memory that is allocated at a time while `work` runs, on top of what was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held, peak = 0, 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


class TestRowsWithoutSignal:
    @pytest.mark.parametrize("update", ["packed", "padded"])
    @pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "cispo"])
    def test_are_skipped_and_the_gradient_is_the_same(
        self, policy: Policy, loss_type: str, update: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = batch_of(policy)
        advantages_B = batch.advantages_B.clone()
        advantages_B[4:8] = 0
        advantages_B[13] = 0
        batch = off_policy(policy, replace(batch, advantages_B=advantages_B), with_kl=False)
        keys = {"loss_type": loss_type, "epsilon_high": 1.2}
        stats, gradients = updated(policy, batch, update, **keys)
        monkeypatch.setattr(step, "informative", lambda batch: batch)
        everything, expected = updated(policy, batch, update, **keys)
        parts.assert_same_gradients(expected, gradients, 1e-6)
        assert stats.loss == pytest.approx(everything.loss, rel=1e-5)
        assert (stats.metrics()["rows/skipped"], everything.metrics()["rows/skipped"]) == (5, 0)
        rows = batch.completion_mask_BT[advantages_B == 0]
        assert everything.tokens - stats.tokens == rows.sum()

    def test_are_not_skipped_with_a_kl_term(self, policy: Policy) -> None:
        batch = off_policy(policy, batch_of(policy), with_kl=True)
        batch = replace(batch, advantages_B=torch.zeros_like(batch.advantages_B))
        stats, gradients = updated(policy, batch, "packed", beta=0.1)
        assert stats.skipped == 0 and any(gradient.any() for gradient in gradients.values())

    @pytest.mark.parametrize("beta", [0.0, 0.1])
    def test_old_logprobs_are_computed_of_the_rows_that_are_updated_on(self, policy: Policy, beta: float) -> None:
        """With a KL term, all."""
        cfg = parts.config(policy.tokenizer.name_or_path, num_iterations=2, beta=beta)
        learner = parts.learner(cfg)
        batch = batch_of(learner.policy)
        still_B = torch.arange(len(batch)) % 3 == 0
        batch = replace(batch, advantages_B=batch.advantages_B.masked_fill(still_B, 0.0))
        expected_BT = frozen_logprobs(learner.policy, batch, cfg, ONE_PROCESS)
        old_BT = with_frozen_logprobs(learner, batch).old_logprobs_BT
        assert old_BT[still_B].any() == (beta > 0)
        left_out_B = still_B & (beta == 0)
        torch.testing.assert_close(old_BT, expected_BT.masked_fill(left_out_B[:, None], 0.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("update", ["packed", "padded"])
@pytest.mark.parametrize("changes", [{"num_iterations": 2}, {"beta": 0.1}], ids=["old", "reference"])
def test_a_stop_does_not_wait_for_the_whole_pass(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, update: str, changes: dict[str, Any]
) -> None:
    """The signal comes inside the second of several forwards; it is the last."""
    cfg = parts.config(policy.tokenizer.name_or_path, update=update, max_tokens_per_microbatch=90, **changes)
    learner, forwards = parts.learner(cfg), []
    batch = batch_of(learner.policy)
    assert len(microbatches(batch, 90, packed=update == "packed")) > 2

    def stopped(*arguments: Any, **keys: Any) -> Any:
        forwards.append(1)
        if len(forwards) == 2:
            learner.stop.ask(signal.SIGTERM)
        return token_logprobs(*arguments, **keys)

    monkeypatch.setattr(step, "token_logprobs", stopped)
    with pytest.raises(Interrupted):
        with_frozen_logprobs(learner, batch)
    assert len(forwards) == 2


def test_what_cannot_be_packed(policy: Policy) -> None:
    cfg = parts.config("unused")
    assert unpackable(policy, ONE_PROCESS) is None
    assert not packs(policy, parts.config("unused", update="padded"), ONE_PROCESS)
    assert "sharded" in unpackable(policy, Dist(sharded=True))
    other = replace(policy, model=GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16)))
    assert "gpt2" in unpackable(other, ONE_PROCESS) and not packs(other, cfg, ONE_PROCESS)
    dropping = Qwen3Config(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8,
        num_key_value_heads=1, attention_dropout=0.1,
    )  # fmt: skip
    assert "dropout" in unpackable(replace(policy, model=Qwen3ForCausalLM(dropping)), ONE_PROCESS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_gpu(folders: dict[str, Path], family: str) -> None:
    policy = parts.load(parts.config(folders[family]))
    policy = replace(policy, model=policy.model.cuda(), device=torch.device("cuda"))
    assert_same_update(policy, batch_of(policy), relative=1e-4)
