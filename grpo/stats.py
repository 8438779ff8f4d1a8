"""What one rollout and one update measured, as sums and counts; means are taken once, at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

import torch

from grpo.advantages import Advantages
from grpo.distributed import Dist
from grpo.types import ScoredGroup, TrainBatch
from rewards.reward import FUNNEL

_SUMS = (
    "loss", "tokens", "skipped", "clipped_low", "clipped_high", "kl", "entropy", "gap",
    "weights", "weights_squared", "weights_limited", "weighed", "off_policy", "judged",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UpdateStats:
    """One optimizer step. What is not described here is a sum over counted tokens that a forward was run for.

    skipped: rows with counted tokens whose gradient is 0 whatever the policy says, and for which none was run; they
    weigh in the loss's normaliser. loss: the scalar that was minimised. grad_norm: before clipping.
    learning_rate: of this update.
    gap: |old - sampler| log-probability, nats, as a sum and as the largest.
    weights: the importance weights old / sampler of what is weighed (tokens, or sequences), cut or masked, and
    `weights_limited` of the `weighed` are; nothing is where the correction is off. off_policy: of the `judged` rows
    those that the off-policy mask took out; none is judged where it is off.
    with_kl: there is a reference; without one `kl` is not measured and not logged.
    rejected: this process's rows of an update that was not applied because something was not finite.
    """

    loss: float = 0.0
    tokens: float = 0.0
    skipped: float = 0.0
    clipped_low: float = 0.0
    clipped_high: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    gap: float = 0.0
    gap_max: float = 0.0
    weights: float = 0.0
    weights_squared: float = 0.0
    weights_limited: float = 0.0
    weighed: float = 0.0
    off_policy: float = 0.0
    judged: float = 0.0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    with_kl: bool = False
    applied: bool = True
    rejected: TrainBatch | None = None

    def plus(self, measured: Sequence[Mapping[str, torch.Tensor]]) -> UpdateStats:
        """With the sums, and the largest gaps, that some forwards measured; waits for the device once."""
        if not measured:
            return self
        rows = [torch.stack([value.double() for value in one.values()]) for one in measured]
        columns = dict(zip(measured[0], torch.stack(rows).T.tolist(), strict=True))
        gaps = columns.pop("gap_max")
        sums = {name: getattr(self, name) + sum(column) for name, column in columns.items()}
        return replace(self, **sums, gap_max=max(self.gap_max, *gaps))

    def reduced(self, dist: Dist) -> UpdateStats:
        """The same over all processes."""
        sums = dist.sum(torch.tensor([getattr(self, name) for name in _SUMS], dtype=torch.float64)).tolist()
        largest = dist.max(torch.tensor([self.gap_max], dtype=torch.float64)).item()
        return replace(self, **dict(zip(_SUMS, sums, strict=True)), gap_max=largest)

    def metrics(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "rows/skipped": self.skipped,
            "tokens/trained": self.tokens,
            **self._token_metrics(),
            **self._correction_metrics(),
        }

    def _token_metrics(self) -> dict[str, float]:
        """What a forward measures: nothing where none was run, because no group of the update carries a signal."""
        if not self.tokens:
            return {}
        metrics = {
            "clip_ratio/low": self.clipped_low / self.tokens,
            "clip_ratio/high": self.clipped_high / self.tokens,
            "clip_ratio/region": (self.clipped_low + self.clipped_high) / self.tokens,
            "entropy": self.entropy / self.tokens,
            "sampler_gap/mean": self.gap / self.tokens,
            "sampler_gap/max": self.gap_max,
        }
        return metrics | ({"kl": self.kl / self.tokens} if self.with_kl else {})

    def _correction_metrics(self) -> dict[str, float]:
        """Of the parts that are on. Effective sample size: Kish's, as a share of what is weighed."""
        metrics = {"off_policy/masked": self.off_policy / self.judged} if self.judged else {}
        if not self.weighed:
            return metrics
        squares = self.weights_squared or 1.0  # all of them masked: no sample is left
        return metrics | {
            "importance_weight/mean": self.weights / self.weighed,
            "importance_weight/effective": self.weights**2 / (self.weighed * squares),
            "importance_weight/limited": self.weights_limited / self.weighed,
        }


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What the metrics need of every completion; light enough to be sent between processes. missing: completions that
    never came back from a server, which the rest knows nothing of."""

    missing: int
    lengths: list[int]
    truncated: list[bool]
    prompt_tokens: int
    correct: list[bool | None]
    parts: Mapping[str, list[float | None]]
    verdicts: Mapping[str, list[str | None]]

    @classmethod
    def of(cls, scored: Sequence[ScoredGroup]) -> RowFacts:
        missing = sum(len(group.group) for group in scored if group.group.missing)
        scored = [group for group in scored if not group.group.missing]
        rollouts = [rollout for group in scored for rollout in group.group.rollouts]
        return cls(
            missing=missing,
            lengths=[len(r.completion_ids) for r in rollouts],
            truncated=[r.truncated for r in rollouts],
            prompt_tokens=sum(len(r.prompt_ids) for r in rollouts),
            correct=[c for group in scored for c in group.correct_G],
            parts=_joined([group.parts for group in scored]),
            verdicts=_joined([group.verdicts for group in scored]),
        )

    @classmethod
    def merged(cls, facts: Sequence[RowFacts]) -> RowFacts:
        return cls(
            missing=sum(f.missing for f in facts),
            lengths=[n for f in facts for n in f.lengths],
            truncated=[t for f in facts for t in f.truncated],
            prompt_tokens=sum(f.prompt_tokens for f in facts),
            correct=[c for f in facts for c in f.correct],
            parts=_joined([f.parts for f in facts]),
            verdicts=_joined([f.verdicts for f in facts]),
        )

    def metrics(self) -> dict[str, float]:
        judged = [c for c in self.correct if c is not None]
        result = {
            "completions/mean_length": fmean(self.lengths),
            "completions/min_length": min(self.lengths),
            "completions/max_length": max(self.lengths),
            "completions/clipped_ratio": fmean(self.truncated),
            "completions/missing": self.missing,
            "num_tokens": self.prompt_tokens + sum(self.lengths),
            "tokens/sampled": sum(self.lengths),
        }
        if judged:
            result["solved_rate"] = fmean(judged)
        for name, values in self.parts.items():
            applied = [value for value in values if value is not None]
            if applied:
                result[f"rewards/{name}/mean"], result[f"rewards/{name}/std"] = fmean(applied), pstdev(applied)
        for name, verdicts in self.verdicts.items():
            counts = Counter(verdict for verdict in verdicts if verdict is not None)
            result |= {f"verdicts/{name}/{verdict}": count for verdict, count in sorted(counts.items())}
            result |= {f"funnel/{name}/{stage}": share for stage, share in self._funnel(name).items()}
        return result

    def _funnel(self, name: str) -> dict[str, float]:
        """How far the completions came that this reward applied to: the share at each stage, each counting only those
        that passed the stages before. Nothing for a reward that does not give every one of them a verdict."""
        rows = zip(self.truncated, self.parts[name], self.verdicts[name], strict=True)
        applied = [(cut, verdict) for cut, score, verdict in rows if score is not None]
        if not applied or any(verdict is None for _, verdict in applied):
            return {}
        whole = [verdict for cut, verdict in applied if not cut]
        stages = {"terminated": len(whole)} | {
            stage: sum(verdict in verdicts for verdict in whole) for stage, verdicts in FUNNEL.items()
        }
        return {stage: count / len(applied) for stage, count in stages.items()}


def reward_metrics(rewards_PG: torch.Tensor, advantages: Advantages) -> dict[str, float]:
    """Reward level and how many groups carry a signal; masked rows (NaN) stay out."""
    valid = rewards_PG[~rewards_PG.isnan()]
    return {
        "reward": valid.mean().item() if len(valid) else float("nan"),
        "reward_std": valid.std().item() if len(valid) > 1 else 0.0,
        "groups/no_signal": advantages.no_signal_P.float().mean().item(),
        "groups/with_signal": (~advantages.no_signal_P & ~advantages.dropped_P).float().mean().item(),
        "groups/dropped": advantages.dropped_P.sum().item(),
    }


def _joined(tables: Sequence[Mapping[str, list]]) -> dict[str, list]:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [value for table in tables for value in table.get(name, ())] for name in names}
