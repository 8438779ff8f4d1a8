"""The training step: sample G completions for every problem, score them, and update the policy on the result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from data.problem import Problem
from grpo.advantages import group_advantages
from grpo.batching import collate, informative, microbatches, minibatches, with_tokens
from grpo.config import RunConfig
from grpo.correction import corrected
from grpo.device import sent
from grpo.distributed import Dist
from grpo.learner import Learner
from grpo.logprobs import token_logprobs
from grpo.losses import kl_penalty, token_losses
from grpo.monitor.counting import counted
from grpo.policy.load import Policy
from grpo.policy.packed import unpackable
from grpo.rounds import Sampled, sample_rounds, timed
from grpo.selection import Fate, GroupFacts, counted_rows, rewards_of, selection_metrics
from grpo.stats import RowFacts, UpdateStats, reward_metrics
from grpo.types import ScoredGroup, TrainBatch
from grpo.weighting import AGGREGATION, loss_weights
from rewards.rubric import summed


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """One round of sampling, or several, scored.

    batch: the rows that this process sampled and that are trained on. scored, advantages_PG: all its groups, discarded
    ones with advantages of 0; `positions` are their numbers among the P of the rollout. The rest is of all P groups and
    the same on every process. rewards_PG: float64, NaN = masked.
    seconds: sampling, scoring, and the part of the update that needs no gradient.
    """

    batch: TrainBatch
    scored: list[ScoredGroup]
    positions: list[int]
    advantages_PG: torch.Tensor
    rewards_PG: torch.Tensor
    facts: list[GroupFacts]
    fates: list[Fate]
    metrics: dict[str, float]
    seconds: dict[str, float]


def training_step(
    learner: Learner, problems: Iterable[Problem], *, rollout: int, trainer_state: Any
) -> Iterator[tuple[RolloutResult, UpdateStats]]:
    """One rollout and its updates, one pair per update, so that the caller can log, count and stop between updates.

    `problems`, the same on every process, are taken from as `sample_rounds` does.
    """
    cfg = learner.cfg
    result = sample_and_score(learner, problems, rollout=rollout, trainer_state=trainer_state)
    shape = (result.fates.count("kept"), cfg.sampling.num_generations)
    for iteration in range(cfg.batch.num_iterations):
        seed = (cfg.output.seed, rollout, iteration)
        for minibatch in minibatches(result.batch, cfg.batch.num_minibatches, shape, seed):
            stats = update_policy(learner.policy, minibatch, learner.optimizer, cfg, learner.dist)
            if stats.applied:
                learner.scheduler.step()
            yield result, stats


@torch.no_grad()
def sample_and_score(
    learner: Learner, problems: Iterable[Problem], *, rollout: int, trainer_state: Any
) -> RolloutResult:
    """Everything of a step that needs no gradient. Advantages are computed from everybody's rewards, so they do not
    depend on the number of processes; a group is trained on where it was sampled. Raises Interrupted on all processes
    when one was asked to stop; weights and optimizer are then as they were."""
    cfg, dist = learner.cfg, learner.dist
    sampled = sample_rounds(learner, problems, rollout=rollout, trainer_state=trainer_state)
    seconds, rewards_PG = sampled.seconds, rewards_of(sampled.facts, cfg.sampling.num_generations)
    with timed(seconds, "update"):
        kept = [position for position, fate in enumerate(sampled.fates) if fate == "kept"]
        advantages_PG, counts_PG = advantages_among(kept, sampled, rewards_PG, cfg)
        batch = rows_of(kept, sampled, advantages_PG, counts_PG, pad_id=learner.policy.pad_id)
        batch = with_frozen_logprobs(learner, batch)
    facts = RowFacts.merged(dist.gather(RowFacts.of(sampled.scored)))
    metrics = {**reward_metrics(rewards_PG, group_advantages(rewards_PG, cfg.advantage)), **facts.metrics()}
    if cfg.selection.dynamic_sampling:
        metrics |= selection_metrics(sampled.fates, sampled.rounds)
    return RolloutResult(
        batch=batch,
        scored=[group.without_masks() for group in sampled.scored],
        positions=sampled.positions,
        advantages_PG=advantages_PG[sampled.positions],
        rewards_PG=rewards_PG,
        facts=sampled.facts,
        fates=sampled.fates,
        metrics=metrics | pooled(dist.gather(sampled.logged)),
        seconds=seconds,
    )


def advantages_among(
    kept: Sequence[int], sampled: Sampled, rewards_PG: torch.Tensor, cfg: RunConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of all P groups, and which rows count: computed among the kept ones, 0 and none for the others."""
    advantages = group_advantages(rewards_PG[kept], cfg.advantage)
    advantages_PG, counts_PG = torch.zeros_like(rewards_PG), torch.zeros_like(rewards_PG, dtype=torch.bool)
    advantages_PG[kept], counts_PG[kept] = advantages.advantages_PG, advantages.counts_PG
    return advantages_PG, counted_rows(sampled.facts, counts_PG, cfg)


def rows_of(
    kept: Sequence[int], sampled: Sampled, advantages_PG: torch.Tensor, counts_PG: torch.Tensor, *, pad_id: int
) -> TrainBatch:
    """This process's rows of the kept groups, which are numbered anew."""
    number = {position: number for number, position in enumerate(kept)}
    own = {p: group for p, group in zip(sampled.positions, sampled.scored, strict=True) if p in number}
    return collate(
        list(own.values()),
        advantages_PG[list(own)],
        counts_PG[list(own)],
        positions=[number[position] for position in own],
        pad_id=pad_id,
    )


def with_frozen_logprobs(learner: Learner, batch: TrainBatch) -> TrainBatch:
    """The batch with the reference's log-probabilities, where there is a KL term, and with old ones: free where it is
    used once, and only of rows that the updates do not skip."""
    logprobs = partial(frozen_logprobs, learner.policy, batch, learner.cfg, learner.dist, between=learner.stop.poll)
    with learner.stop.left_together():
        if learner.reference is not None:
            with learner.reference.active():
                batch = replace(batch, ref_logprobs_BT=logprobs())
        if learner.cfg.updates_per_rollout > 1:
            batch = replace(batch, old_logprobs_BT=logprobs(rows=informative(batch)))
    return batch


def update_policy(
    policy: Policy, batch: TrainBatch, optimizer: torch.optim.Optimizer, cfg: RunConfig, dist: Dist
) -> UpdateStats:
    """One optimizer step on this process's rows of a minibatch; how they are split does not change the gradient.

    Where loss or gradient norm is not finite, or no row of any process counts, the weights stay as they are and
    `applied` is False.
    """
    parameters, packed = list(policy.trainable().values()), packs(policy, cfg, dist)
    batch, num_tokens = with_loss_weights(batch, cfg, dist)
    moving = informative(batch)
    optimizer.zero_grad(set_to_none=True)
    stats = UpdateStats(
        learning_rate=optimizer.param_groups[0]["lr"],
        with_kl=batch.ref_logprobs_BT is not None,
        skipped=len(with_tokens(batch)) - len(with_tokens(moving)),
    )
    micros = forwards(moving, cfg, dist, packed=packed)
    counter = counted(micros, desc="updating", unit="forwards", disable=not dist.is_main)
    measured = []
    for number, micro in enumerate(counter, start=1):
        with dist.gradient_sync(policy.network, enabled=number == len(micros)):
            loss, sums = micro_loss(policy, micro, cfg, packed=packed)
            dist.backward(loss)
        measured.append(sums)
    dist.sum_gradients(parameters)
    stats = stats.plus(measured).reduced(dist)
    grad_norm = dist.clip_grad_norm(parameters, cfg.optim.max_grad_norm) if num_tokens else 0.0
    finite = math.isfinite(stats.loss) and math.isfinite(grad_norm)
    if finite and num_tokens:
        optimizer.step()
    return replace(stats, grad_norm=grad_norm, applied=finite and num_tokens > 0, rejected=None if finite else batch)


def micro_loss(
    policy: Policy, micro: TrainBatch, cfg: RunConfig, *, packed: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of one forward, already weighted for the whole update, and what `UpdateStats` adds up."""
    policy_BT, entropy_BT = token_logprobs(policy, micro, cfg.sampling.temperature, packed=packed)
    micro = micro.to(policy.device)
    mask_BT = micro.completion_mask_BT
    losses = token_losses(
        policy_logprobs_BT=policy_BT,
        old_logprobs_BT=micro.old_logprobs_BT,
        advantages_B=micro.advantages_B,
        mask_BT=mask_BT,
        cfg=cfg.loss,
    )
    loss_BT, correction = corrected(losses.loss_BT, policy_BT, micro, cfg.correction)
    kl_BT = torch.zeros_like(policy_BT)
    if micro.ref_logprobs_BT is not None:
        kl_BT = kl_penalty(
            policy_logprobs_BT=policy_BT,
            ref_logprobs_BT=micro.ref_logprobs_BT,
            ratio_BT=losses.ratio_BT,
            mask_BT=mask_BT,
            cfg=cfg.loss,
        )
        loss_BT = loss_BT + cfg.loss.beta * kl_BT
    loss = (loss_BT * micro.loss_weights_BT).sum()
    return loss, {
        "loss": loss.detach(),
        "tokens": mask_BT.sum(),
        "clipped_low": losses.clipped_low_BT.sum(),
        "clipped_high": losses.clipped_high_BT.sum(),
        "kl": kl_BT.detach().sum(),
        "entropy": entropy_BT.sum(),
        **correction,
    }


def with_loss_weights(batch: TrainBatch, cfg: RunConfig, dist: Dist) -> tuple[TrainBatch, int]:
    """The batch with every token's weight, and the number of counted tokens over all processes."""
    num_tokens = dist.sum_int(int(batch.completion_mask_BT.sum()))
    weights_BT = loss_weights(
        batch.completion_mask_BT,
        aggregation=AGGREGATION[cfg.loss.loss_type],
        num_tokens=num_tokens,
        num_sequences=dist.sum_int(len(batch)),
        max_completion_length=cfg.sampling.max_completion_length,
    )
    return replace(batch, loss_weights_BT=weights_BT), num_tokens


@torch.no_grad()
def frozen_logprobs(
    policy: Policy,
    batch: TrainBatch,
    cfg: RunConfig,
    dist: Dist,
    *,
    rows: TrainBatch | None = None,
    between: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Log-probabilities of the batch under the weights as they stand, float32 (B, T), 0 outside the mask.

    `rows`: those of the batch that are wanted, the others stay 0; all by default. `between` is called before every
    forward, and may raise to give the work up.
    """
    result_BT = torch.zeros(batch.sampler_logprobs_BT.shape, device=policy.device)
    index_of = {row_id: index for index, row_id in enumerate(batch.row_ids_B.tolist())}
    packed = packs(policy, cfg, dist)
    with policy.eval_mode():
        micros = forwards(batch if rows is None else rows, cfg, dist, packed=packed)
        for micro in counted(micros, desc="log-probabilities", unit="forwards", disable=not dist.is_main):
            between()
            logprobs_BT, _ = token_logprobs(policy, micro, cfg.sampling.temperature, packed=packed)
            if micro.completion_mask_BT.any():
                places = torch.tensor([index_of[row_id] for row_id in micro.row_ids_B.tolist()])
                result_BT[sent(places, policy.device), : logprobs_BT.shape[1]] = logprobs_BT
    return result_BT.cpu()


def forwards(batch: TrainBatch, cfg: RunConfig, dist: Dist, *, packed: bool) -> list[TrainBatch]:
    """The batch cut into forwards: as many on every process as on the busiest one where parameters are sharded."""
    micros = microbatches(batch, cfg.batch.max_tokens_per_microbatch, packed=packed)
    if not dist.sharded:
        return micros
    return microbatches(batch, cfg.batch.max_tokens_per_microbatch, dist.max_int(max(1, len(micros))), packed=packed)


def packs(policy: Policy, cfg: RunConfig, dist: Dist) -> bool:
    """Whether forwards run over packed rows: it is asked for, and the policy allows it."""
    return cfg.batch.update == "packed" and unpackable(policy, dist) is None


def pooled(parts: Sequence[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    """(sum, count) pairs of all processes -> means."""
    return {name: total / count for name, (total, count) in summed(parts).items()}
