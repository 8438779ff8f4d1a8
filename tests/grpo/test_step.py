"""One training step: the gradient of an update, what may and may not move it, and the order of a rollout's updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo import step
from grpo.config import RunConfig
from grpo.learner import Learner
from grpo.policy.load import Policy
from grpo.step import frozen_logprobs, sample_and_score, training_step, update_policy
from grpo.types import TrainBatch
from tests.grpo import parts
from tests.grpo.parts import ONE_PROCESS

PROMPTS = ("1 + 2 =", "User: what is 3 + 4 + 5? Assistant:", "x")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.save_sharp_model(tmp_path_factory.mktemp("sharp"))


@pytest.fixture(scope="module")
def policy(model: Path) -> Policy:
    """Shared: tests that move weights load their own."""
    return parts.load(parts.config(model))


def no_update(policy: Policy) -> torch.optim.Optimizer:
    return torch.optim.SGD(policy.trainable().values(), lr=0.0)


def gradient(policy: Policy, batch: TrainBatch, cfg: RunConfig) -> dict[str, torch.Tensor]:
    """The gradient that `update_policy` hands to the optimizer, unclipped."""
    cfg = replace(cfg, optim=replace(cfg.optim, max_grad_norm=0.0))
    assert update_policy(policy, batch, no_update(policy), cfg, ONE_PROCESS).applied
    return parts.gradients(policy)


def off_policy(policy: Policy, batch: TrainBatch, *, with_kl: bool) -> TrainBatch:
    """Old, sampler's and reference log-probabilities at some distance from the policy's: ratios clip on both sides."""
    now_BT = frozen_logprobs(policy, batch, parts.config("unused"), ONE_PROCESS)
    noise_3BT = 0.4 * torch.randn(3, *now_BT.shape, generator=torch.Generator().manual_seed(3))
    old_BT, ref_BT = now_BT + noise_3BT[0], now_BT + noise_3BT[1] if with_kl else None
    return replace(
        batch, old_logprobs_BT=old_BT, ref_logprobs_BT=ref_BT, sampler_logprobs_BT=old_BT + 0.5 * noise_3BT[2]
    )


class TestGradient:
    @pytest.mark.parametrize("with_kl", [False, True], ids=["no_kl", "kl"])
    @pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
    @pytest.mark.parametrize("update", ["packed", "padded"])
    def test_does_not_depend_on_the_micro_batches(
        self, policy: Policy, model: Path, update: str, loss_type: str, with_kl: bool
    ) -> None:
        """1, 3, 8 and all 12 rows per forward: 1e-6 of the gradient's norm."""
        batch = off_policy(policy, parts.random_batch(policy, longest=8), with_kl=with_kl)
        width = batch.input_ids_BL.shape[1]
        seen, found = [], {}
        for rows in (1, 3, 8, 12):
            keys = {"loss_type": loss_type, "beta": 0.3 * with_kl, "max_tokens_per_microbatch": rows * width}
            cfg = parts.config(model, update=update, **keys)
            seen.append(len(step.microbatches(batch, rows * width)[0]))
            found[rows] = gradient(policy, batch, cfg)
        assert seen == [1, 3, 8, 12]
        for rows in (1, 3, 8):
            parts.assert_same_gradients(found[12], found[rows], 1e-6)

    def test_on_policy_without_kl_is_reinforce(self, policy: Policy, model: Path) -> None:
        """The twin: one row at a time, no padding, plain transformers, -A x mean log p, averaged over rows."""
        groups = parts.random_groups(policy, 3, 4, 8)
        batch = parts.random_batch(policy, longest=8)
        keys = {"temperature": 0.8, "vllm_importance_sampling_correction": False}  # its sampler is nobody's
        ours = gradient(policy, batch, parts.config(model, loss_type="grpo", **keys))
        twin = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        rows = [rollout for group in groups for rollout in group.group.rollouts]
        loss = torch.zeros(())
        for row, advantage in zip(rows, batch.advantages_B, strict=True):
            logits_TV = twin(torch.tensor([row.prompt_ids + row.completion_ids])).logits[0, :-1] / 0.8
            logprobs_T = torch.stack(
                [
                    logits_TV[len(row.prompt_ids) - 1 + t].log_softmax(-1)[token]
                    for t, token in enumerate(row.completion_ids)
                ]
            )
            loss = loss - advantage * logprobs_T.mean() / len(rows)
        loss.backward()
        theirs = {name: p.grad for name, p in twin.named_parameters()}
        parts.assert_same_gradients(ours, theirs, 1e-5)

    def test_equal_rewards_give_exactly_no_gradient(self, model: Path) -> None:
        """Bitwise: every gradient is 0 and SGD, without decay, leaves every weight as it is."""
        policy = parts.load(parts.config(model))
        before = parts.fingerprint(policy.model)
        batch = parts.random_batch(policy)
        batch = replace(batch, advantages_B=torch.zeros_like(batch.advantages_B))
        stats = update_policy(
            policy, batch, torch.optim.SGD(policy.trainable().values(), lr=1.0), parts.config(model), ONE_PROCESS
        )
        assert stats.grad_norm == 0.0 and stats.loss == 0.0 and stats.applied
        assert not any(value.any() for value in parts.gradients(policy).values())
        assert parts.fingerprint(policy.model) == before

    def test_the_batch_is_not_written_to(self, policy: Policy, model: Path) -> None:
        batch = off_policy(policy, parts.random_batch(policy), with_kl=True)
        before = {name: value.clone() for name, value in vars(batch).items() if value is not None}
        gradient(policy, batch, parts.config(model, beta=0.1, max_tokens_per_microbatch=40))
        assert {name for name, value in vars(batch).items() if value is not None} == before.keys()
        assert all(value.equal(getattr(batch, name)) for name, value in before.items())

    @pytest.mark.parametrize("junk", [1e4, math.inf, math.nan])
    def test_numbers_outside_the_mask_change_nothing_bitwise(self, policy: Policy, model: Path, junk: float) -> None:
        """At prompt positions and pads, in every log-probability of the batch; metrics too."""
        batch = off_policy(policy, parts.random_batch(policy), with_kl=True)
        outside_BT = ~batch.completion_mask_BT
        spoilt = {
            name: getattr(batch, name).masked_fill(outside_BT, junk)
            for name in ("sampler_logprobs_BT", "old_logprobs_BT", "ref_logprobs_BT")
        }
        cfg, optimizer = parts.config(model, beta=0.1), no_update(policy)
        clean = update_policy(policy, batch, optimizer, cfg, ONE_PROCESS)
        expected = parts.gradients(policy)
        assert update_policy(policy, replace(batch, **spoilt), optimizer, cfg, ONE_PROCESS) == clean
        found = parts.gradients(policy)
        assert all(value.equal(found[name]) for name, value in expected.items())

    @pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
    def test_rows_that_do_not_count_contribute_nothing(self, policy: Policy, model: Path, loss_type: str) -> None:
        """Whatever stands in them: bitwise. Their share of the denominator stays (grpo, dr_grpo), as in TRL."""
        batch = parts.random_batch(policy)
        mask_BT = batch.completion_mask_BT.clone()
        mask_BT[[1, 4, 5]] = False
        masked = replace(batch, completion_mask_BT=mask_BT)
        cfg = parts.config(model, loss_type=loss_type)
        expected = gradient(policy, masked, cfg)
        other_ids = masked.input_ids_BL.clone()
        other_ids[[1, 4, 5]] = 5
        advantages_B = masked.advantages_B.clone()
        advantages_B[[1, 4, 5]] = math.nan
        found = gradient(policy, replace(masked, input_ids_BL=other_ids, advantages_B=advantages_B), cfg)
        assert all(value.equal(found[name]) for name, value in expected.items())
        kept = batch.rows(mask_BT.any(dim=1).nonzero()[:, 0])
        share = 1.0 if loss_type == "dapo" else len(kept) / len(batch)
        alone = {name: value * share for name, value in gradient(policy, kept, cfg).items()}
        parts.assert_same_gradients(expected, alone, 1e-6)

    def test_an_update_without_a_counted_token_is_left_out(self, model: Path) -> None:
        policy = parts.load(parts.config(model))
        before = parts.fingerprint(policy.model)
        batch = parts.random_batch(policy)
        nothing = replace(batch, completion_mask_BT=torch.zeros_like(batch.completion_mask_BT))
        optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1.0, weight_decay=1.0)
        stats = update_policy(policy, nothing, optimizer, parts.config(model), ONE_PROCESS)
        assert (stats.applied, stats.rejected, stats.tokens) == (False, None, 0.0)
        assert parts.fingerprint(policy.model) == before

    def test_gradient_checkpointing_gives_the_same(self, policy: Policy, model: Path) -> None:
        """1e-6 of the norm, for full fine-tuning and for LoRA; recomputed in backward (forwards are counted)."""
        for lora in ({}, {"use_peft": True, "lora_r": 4}):
            found, calls = [], []
            for checkpointing in (False, True):
                cfg = parts.config(model, gradient_checkpointing=checkpointing, **lora)
                own = parts.load(cfg)
                if lora:
                    move_adapter(own)
                layer = next(m for m in own.model.modules() if type(m).__name__ == "DeepseekV3MLP")
                count: list[int] = []
                layer.register_forward_pre_hook(lambda *_, count=count: count.append(1))
                found.append(gradient(own, parts.random_batch(own), cfg))
                calls.append(len(count))
            parts.assert_same_gradients(*found, 1e-6)
            assert calls == [1, 2]

    def test_the_norm_is_reported_before_clipping(self, model: Path) -> None:
        """Against torch's own norm; after clipping the gradient has the asked-for length."""
        policy = parts.load(parts.config(model))
        batch = parts.random_batch(policy)
        exact = gradient(policy, batch, parts.config(model))
        norm = sum(value.double().square().sum() for value in exact.values()).sqrt().item()
        cfg = parts.config(model, max_grad_norm=norm / 10)
        stats = update_policy(policy, batch, no_update(policy), cfg, ONE_PROCESS)
        clipped = parts.gradients(policy)
        assert stats.grad_norm == pytest.approx(norm, rel=1e-5)
        after = sum(value.double().square().sum() for value in clipped.values()).sqrt().item()
        assert after == pytest.approx(norm / 10, rel=1e-4)


def move_adapter(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


class TestStats:
    def test_are_means_over_counted_tokens_of_the_whole_update(self, policy: Policy, model: Path) -> None:
        """Against the definitions, token by token; the same for every split (1e-6)."""
        batch = off_policy(policy, parts.random_batch(policy), with_kl=True)
        now_BT, entropy_BT = step.token_logprobs(policy, batch, 1.0)
        mask_BT, now_BT = batch.completion_mask_BT, now_BT.detach()
        ratio_BT = (now_BT - batch.old_logprobs_BT).exp()
        negative_BT = (batch.advantages_B < 0)[:, None].expand_as(mask_BT)
        log_r_BT = batch.ref_logprobs_BT - now_BT
        expected = {
            "clip_ratio/low": ((ratio_BT < 0.8) & negative_BT)[mask_BT].float().mean(),
            "clip_ratio/high": ((ratio_BT > 1.2) & ~negative_BT)[mask_BT].float().mean(),
            "kl": (log_r_BT.exp() - log_r_BT - 1)[mask_BT].mean(),
            "entropy": entropy_BT[mask_BT].mean(),
            "sampler_gap/mean": (batch.old_logprobs_BT - batch.sampler_logprobs_BT)[mask_BT].abs().mean(),
            "sampler_gap/max": (batch.old_logprobs_BT - batch.sampler_logprobs_BT)[mask_BT].abs().max(),
            "importance_weight/mean": (batch.old_logprobs_BT - batch.sampler_logprobs_BT)[mask_BT].exp().mean(),
        }
        for max_tokens in (16, 10_000):
            cfg = parts.config(model, beta=0.1, max_tokens_per_microbatch=max_tokens)
            stats = update_policy(policy, batch, no_update(policy), cfg, ONE_PROCESS)
            assert stats.tokens == mask_BT.sum()
            metrics = stats.metrics()
            assert metrics["clip_ratio/region"] == metrics["clip_ratio/low"] + metrics["clip_ratio/high"]
            for name, value in expected.items():
                assert value > 0
                assert metrics[name] == pytest.approx(value.item(), rel=1e-5), name

    @pytest.mark.parametrize("with_kl", [False, True], ids=["no_kl", "kl"])
    def test_an_update_without_a_signal_measures_nothing_of_tokens(
        self, policy: Policy, model: Path, with_kl: bool
    ) -> None:
        """Its groups have one reward each: no forward is run, unless there is a KL term. Nobody reads a collapse of the
        entropy there, or a perfect sampler."""
        batch = off_policy(policy, parts.random_batch(policy), with_kl=with_kl)
        batch = replace(batch, advantages_B=torch.zeros_like(batch.advantages_B))
        cfg = parts.config(model, beta=0.1 * with_kl)
        metrics = update_policy(policy, batch, no_update(policy), cfg, ONE_PROCESS).metrics()
        measured = {name for name in metrics if name.startswith(("entropy", "sampler_gap", "clip_ratio", "kl"))}
        assert len(measured) == (7 if with_kl else 0)
        assert metrics.keys() - measured >= {"loss", "grad_norm", "learning_rate", "rows/skipped", "tokens/trained"}

    def test_kl_is_logged_only_where_there_is_a_reference(self, policy: Policy, model: Path) -> None:
        batch = parts.random_batch(policy)
        for with_kl in (False, True):
            b = off_policy(policy, batch, with_kl=with_kl)
            stats = update_policy(policy, b, no_update(policy), parts.config(model, beta=0.1), ONE_PROCESS)
            assert ("kl" in stats.metrics()) == with_kl


def prefers_short_words(completions: list[str], **_: Any) -> list[float]:
    """A reward with a different value for nearly every text."""
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def rounds(learner: Learner, number: int = 1) -> list[tuple[Any, Any]]:
    problems = parts.problems(*PROMPTS)
    return [
        pair
        for rollout in range(number)
        for pair in training_step(learner, problems, rollout=rollout, trainer_state=parts.trainer_state())
    ]


class TestScoring:
    def test_masked_rows_and_dropped_groups_stay_out(self, model: Path) -> None:
        """None masks a row. Group 0: one row masked. Group 1: a single valid row, dropped. Group 2: all valid."""
        rewards = [1.0, None, 0.0, 0.5, None, None, 1.0, None, 0.0, 0.0, 0.0, 1.0]
        learner = parts.learner(parts.config(model), lambda completions, **_: rewards)
        problems = parts.problems(*PROMPTS)
        result = sample_and_score(learner, problems, rollout=0, trainer_state=parts.trainer_state())
        assert result.batch.completion_mask_BT.any(dim=1).tolist() == [
            *(True, False, True, True),
            *(False,) * 4,
            *(True,) * 4,
        ]
        assert result.metrics["groups/dropped"] == 1 and result.metrics["reward"] == pytest.approx(3.5 / 8)
        std = 0.5 + 1e-4  # of 1, 0 and 0.5, with the guard
        assert result.advantages_PG[0].tolist() == pytest.approx([0.5 / std, 0, -0.5 / std, 0])
        assert not result.advantages_PG[1].any()

    def test_truncated_completions_can_be_masked(self, model: Path) -> None:
        """They keep their part in mean and std, as in TRL, and none in the loss."""
        keys = {"num_generations": 16, "max_completion_length": 10}
        found = {}
        for masked in (False, True):
            cfg = parts.config(model, mask_truncated_completions=masked, **keys)
            learner = parts.learner(cfg, prefers_short_words)
            found[masked] = sample_and_score(
                learner, parts.problems(*PROMPTS), rollout=0, trainer_state=parts.trainer_state()
            )
        rollouts = [r for group in found[True].scored for r in group.group.rollouts]
        ended = [not r.truncated for r in rollouts]
        assert 0 < sum(ended) < len(ended)
        assert found[True].batch.completion_mask_BT.any(dim=1).tolist() == ended
        assert found[False].batch.completion_mask_BT.any(dim=1).all()
        assert found[True].advantages_PG.equal(found[False].advantages_PG)
        assert found[True].metrics["completions/clipped_ratio"] == 1 - sum(ended) / len(ended)

    @pytest.mark.parametrize(
        ("keys", "passes"),
        [({}, 0), ({"beta": 0.1}, 1), ({"num_minibatches": 2}, 1), ({"beta": 0.1, "num_iterations": 2}, 2)],
    )
    def test_no_forward_for_what_is_free(
        self, model: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], passes: int
    ) -> None:
        """Old log-probabilities of a batch that is used once, and a reference without a KL term; the rest is packed."""
        real, seen = step.token_logprobs, []

        def counted(*args: Any, packed: bool) -> Any:
            seen.append(packed)
            return real(*args, packed=packed)

        monkeypatch.setattr(step, "token_logprobs", counted)
        learner = parts.learner(parts.config(model, **keys), prefers_short_words)
        result = sample_and_score(learner, parts.problems(*PROMPTS), rollout=0, trainer_state=parts.trainer_state())
        assert seen == [True] * passes
        assert (result.batch.ref_logprobs_BT is not None) == (learner.reference is not None) == ("beta" in keys)

    def test_metrics_are_those_of_the_rows(self, model: Path) -> None:
        learner = parts.learner(parts.config(model), prefers_short_words)
        problems = parts.problems(*PROMPTS)
        result = sample_and_score(learner, problems, rollout=0, trainer_state=parts.trainer_state())
        rows = [r for group in result.scored for r in group.group.rollouts]
        lengths = [len(r.completion_ids) for r in rows]
        assert result.metrics["completions/mean_length"] == sum(lengths) / len(rows)
        assert result.metrics["completions/min_length"] == min(lengths)
        assert result.metrics["completions/max_length"] == max(lengths)
        assert result.metrics["num_tokens"] == sum(lengths) + sum(len(r.prompt_ids) for r in rows)
        rewards = prefers_short_words([r.text for r in rows])
        assert result.rewards_PG.flatten().tolist() == rewards
        assert result.metrics["reward"] == pytest.approx(sum(rewards) / len(rewards))
        assert result.metrics["rewards/prefers_short_words/mean"] == pytest.approx(sum(rewards) / len(rewards))
        assert "solved_rate" not in result.metrics  # nothing judged the rows
        assert set(result.seconds) == {"sampling", "scoring", "update"}


class TestUpdatesOfARollout:
    KEYS = {"num_minibatches": 4, "num_iterations": 2, "learning_rate": 3e-3}  # noqa: RUF012

    @pytest.fixture(scope="class")
    @classmethod
    def spied(cls, model: Path) -> tuple[Learner, list[TrainBatch], list[Any]]:
        """One rollout of 12 rows in 4 minibatches, twice over; what every update was given, and what it said."""
        learner = parts.learner(parts.config(model, **cls.KEYS), prefers_short_words)
        given: list[TrainBatch] = []
        with pytest.MonkeyPatch.context() as patch:

            def spy(policy: Policy, batch: TrainBatch, *rest: Any) -> Any:
                given.append(batch)
                return update_policy(policy, batch, *rest)

            patch.setattr(step, "update_policy", spy)
            return learner, given, rounds(learner)

    def test_every_row_once_in_each_iteration(self, spied: Any) -> None:
        _, given, _ = spied
        assert len(given) == 8 and all(len(batch) == 3 for batch in given)
        cuts = [sorted(row for b in given[i : i + 4] for row in b.row_ids_B.tolist()) for i in (0, 4)]
        assert cuts == [list(range(12))] * 2
        assert given[0].row_ids_B.tolist() != given[4].row_ids_B.tolist()  # cut anew

    def test_eight_optimizer_steps_and_schedule_steps(self, spied: Any) -> None:
        learner, _, pairs = spied
        assert len(pairs) == 8 and all(stats.applied for _, stats in pairs)
        assert {state["step"].item() for state in learner.optimizer.state.values()} == {8}
        assert learner.scheduler.last_epoch == 8

    def test_old_logprobs_are_those_of_sampling_time(self, spied: Any, model: Path) -> None:
        """Bitwise the same in both iterations, and the initial model's (1e-5)."""
        _, given, pairs = spied
        old = [
            {row: b.old_logprobs_BT[i] for b in part for i, row in enumerate(b.row_ids_B.tolist())}
            for part in (given[:4], given[4:])
        ]
        assert all(old[0][row].equal(old[1][row]) for row in range(12))
        fresh = parts.load(parts.config(model))
        batch = pairs[0][0].batch
        expected_BT = frozen_logprobs(fresh, batch, parts.config(model), ONE_PROCESS)
        torch.testing.assert_close(batch.old_logprobs_BT, expected_BT, rtol=0, atol=1e-5)
        torch.testing.assert_close(batch.old_logprobs_BT, batch.sampler_logprobs_BT, rtol=0, atol=1e-5)

    def test_the_ratio_leaves_one_with_the_second_update(self, spied: Any) -> None:
        """Shown by what clips at this learning rate: nothing in the first update, something in the last ones."""
        _, _, pairs = spied
        clips = [stats.metrics()["clip_ratio/region"] for _, stats in pairs]
        assert clips[0] == 0 and min(clips[5:]) > 0

    def test_a_single_update_needs_no_old_logprobs(self, model: Path) -> None:
        ((result, stats),) = rounds(parts.learner(parts.config(model), prefers_short_words))
        assert result.batch.old_logprobs_BT is None and stats.applied
        assert stats.metrics()["sampler_gap/max"] < 1e-5

    def test_other_problems_give_another_step_and_the_same_give_the_same(self, model: Path) -> None:
        """Bit for bit on one thread, over three rollouts: rewards, metrics and weights."""
        runs = []
        for _ in range(2):
            torch.manual_seed(len(runs))  # no global generator takes part
            learner = parts.learner(parts.config(model, **self.KEYS), prefers_short_words)
            pairs = rounds(learner, 3)
            rewards = [result.rewards_PG.tolist() for result, _ in pairs[::8]]
            runs.append((rewards, [stats for _, stats in pairs], parts.fingerprint(learner.policy.model)))
        assert runs[0] == runs[1]
        assert runs[0][0][0] != runs[0][0][1]


class TestReference:
    def learner(self, model: Path, **keys: Any) -> Learner:
        return parts.learner(parts.config(model, beta=0.1, learning_rate=3e-3, **keys), prefers_short_words)

    def test_kl_is_zero_at_the_start_and_grows(self, model: Path) -> None:
        """k3 of differences below 1e-5 is below 1e-9."""
        (_, first), (_, second), (_, third) = rounds(self.learner(model), 3)
        assert abs(first.metrics()["kl"]) < 1e-9
        assert third.metrics()["kl"] > 1e-4 and second.metrics()["kl"] > 1e-6

    def test_swapping_leaves_the_weights_bit_for_bit(self, model: Path) -> None:
        learner = self.learner(model)
        start = parts.fingerprint(learner.policy.model)
        rounds(learner)
        moved = parts.fingerprint(learner.policy.model)
        assert moved != start
        with learner.reference.active():
            assert parts.fingerprint(learner.policy.model) == start
        assert parts.fingerprint(learner.policy.model) == moved
        with pytest.raises(KeyError, match="inside"), learner.reference.active():
            raise KeyError("inside")
        assert parts.fingerprint(learner.policy.model) == moved

    @pytest.mark.parametrize("alpha", [1.0, 0.6])
    def test_refresh(self, model: Path, alpha: float) -> None:
        """alpha 1: the policy bit for bit (R1's hard copy). 0.6: the mixture, 1e-6."""
        learner = self.learner(model)
        start = {name: p.detach().clone() for name, p in learner.policy.trainable().items()}
        rounds(learner)
        learner.reference.refresh(alpha)
        for name, parameter in learner.policy.trainable().items():
            mixed = alpha * parameter.detach() + (1 - alpha) * start[name]
            tolerance = {"rtol": 0, "atol": 0} if alpha == 1 else {"rtol": 1e-5, "atol": 1e-7}
            torch.testing.assert_close(learner.reference.weights[name], mixed, **tolerance)
        ((_, stats),) = rounds(learner)
        assert (stats.metrics()["kl"] < 1e-9) == (alpha == 1)

    def test_with_lora_it_is_the_base_and_keeps_only_the_adapter(self, model: Path) -> None:
        """Reference log-probabilities of a moved adapter equal those with the adapter switched off (1e-5)."""
        learner = self.learner(model, use_peft=True, lora_r=4)
        rounds(learner, 2)
        policy, batch = learner.policy, parts.random_batch(learner.policy)
        with learner.reference.active():
            swapped_BT = frozen_logprobs(policy, batch, learner.cfg, ONE_PROCESS)
        with policy.model.disable_adapter():
            base_BT = frozen_logprobs(policy, batch, learner.cfg, ONE_PROCESS)
        torch.testing.assert_close(swapped_BT, base_BT, rtol=0, atol=1e-5)
        assert (frozen_logprobs(policy, batch, learner.cfg, ONE_PROCESS) - base_BT).abs().max() > 1e-3
        assert sum(w.numel() for w in learner.reference.weights.values()) < 0.2 * policy.model.num_parameters()

    def test_low_precision_does_not_remember_the_other_weights(self, model: Path) -> None:
        """Autocast keeps casts of weights; a cast of the reference's must not answer for the policy's."""
        learner = self.learner(model, dtype="bfloat16")
        rounds(learner)
        batch = parts.random_batch(learner.policy)
        policy_BT = frozen_logprobs(learner.policy, batch, learner.cfg, ONE_PROCESS)
        with learner.reference.active():
            reference_BT = frozen_logprobs(learner.policy, batch, learner.cfg, ONE_PROCESS)
        again_BT = frozen_logprobs(learner.policy, batch, learner.cfg, ONE_PROCESS)
        assert policy_BT.equal(again_BT) and not policy_BT.equal(reference_BT)

    def test_v3_2_kl_moves_the_gradient_as_its_formula_says(self, policy: Policy, model: Path) -> None:
        """With zero advantages only the KL term is left: k3 times policy / old, differentiated as a whole (1e-5)."""
        batch = off_policy(policy, parts.random_batch(policy), with_kl=True)
        batch = replace(batch, advantages_B=torch.zeros_like(batch.advantages_B))
        keys = {"beta": 0.5, "loss_type": "dapo"}
        corrected = gradient(policy, batch, parts.config(model, use_bias_correction_kl=True, **keys))
        plain = gradient(policy, batch, parts.config(model, **keys))
        policy.model.zero_grad()
        now_BT, _ = step.token_logprobs(policy, batch, 1.0)
        log_r_BT = batch.ref_logprobs_BT - now_BT
        terms_BT = (log_r_BT.exp() - log_r_BT - 1) * (now_BT - batch.old_logprobs_BT).exp()
        (0.5 * terms_BT[batch.completion_mask_BT].mean()).backward()
        parts.assert_same_gradients(parts.gradients(policy), corrected, 1e-5)
        with pytest.raises(AssertionError, match="relative difference"):
            parts.assert_same_gradients(plain, corrected, 1e-2)


class TestNotFinite:
    def run(
        self, model: Path, spoil: Callable[[Policy, TrainBatch], TrainBatch]
    ) -> tuple[Policy, TrainBatch, Any, str]:
        policy = parts.load(parts.config(model))
        optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-3, weight_decay=0.1)
        batch = spoil(policy, parts.random_batch(policy))
        before = parts.fingerprint(policy.model)
        stats = update_policy(policy, batch, optimizer, parts.config(model), ONE_PROCESS)
        assert not optimizer.state
        return policy, batch, stats, before

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_a_bad_gradient_of_one_weight_stops_before_the_weights_change(self, model: Path, value: float) -> None:
        def spoil(policy: Policy, batch: TrainBatch) -> TrainBatch:
            weight = policy.model.model.layers[1].self_attn.o_proj.weight
            weight.register_hook(lambda g: g.index_fill(0, torch.tensor(0), value))
            return batch

        policy, batch, stats, before = self.run(model, spoil)
        assert parts.fingerprint(policy.model) == before
        assert not stats.applied and math.isfinite(stats.loss) and not math.isfinite(stats.grad_norm)
        assert stats.rejected.row_ids_B.tolist() == batch.row_ids_B.tolist()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_bad_loss_too(self, model: Path, value: float) -> None:
        def spoil(policy: Policy, batch: TrainBatch) -> TrainBatch:
            advantages_B = batch.advantages_B.clone()
            advantages_B[2] = value
            return replace(batch, advantages_B=advantages_B)

        policy, batch, stats, before = self.run(model, spoil)
        assert parts.fingerprint(policy.model) == before
        assert not stats.applied and not math.isfinite(stats.loss)
        assert stats.rejected.input_ids_BL.equal(batch.input_ids_BL)

    def test_the_schedule_waits_and_the_next_update_works(self, model: Path) -> None:
        learner = parts.learner(parts.config(model), prefers_short_words)
        weight = learner.policy.model.lm_head.weight
        handle = weight.register_hook(lambda g: g * math.nan)
        ((_, refused),) = rounds(learner)
        handle.remove()
        assert not refused.applied and learner.scheduler.last_epoch == 0
        ((_, stats),) = rounds(learner)
        assert stats.applied and learner.scheduler.last_epoch == 1 and weight.isfinite().all()


class TestLora:
    def test_only_the_adapter_trains(self, model: Path) -> None:
        learner = parts.learner(parts.config(model, use_peft=True, lora_r=4, learning_rate=1e-2), prefers_short_words)
        before = {name: value.clone() for name, value in learner.policy.model.state_dict().items()}
        assert all("lora_" in name for name in learner.policy.trainable())
        rounds(learner, 2)
        after = learner.policy.model.state_dict()
        changed = {name for name, value in before.items() if not value.equal(after[name])}
        assert changed == {name for name in before if "lora_" in name}
