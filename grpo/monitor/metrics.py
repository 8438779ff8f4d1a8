"""What a run measures: `metrics.jsonl`, one JSON object per line, and one line of documentation per metric.

Names are flat and TRL's where TRL has them. Metrics of a rollout appear on the first of its updates only; an
evaluation may write a further line for a step that already has one.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpo.files import write_text_atomic

METRICS_FILE = "metrics.jsonl"

# `<name>` stands for the name of a reward, `<verdict>` for one of rewards.reward.Verdict, `<stage>` for one of its
# FUNNEL, `<fate>` for one of grpo.selection.DISCARDED, `<k>` for a whole number.
METRICS: dict[str, str] = {
    "reward": "mean weighted reward of the rollout's completions; rows masked by a failed reward left out",
    "reward_std": "standard deviation of the reward over the rollout's completions",
    "rewards/<name>/mean": "mean un-weighted score of this reward over the completions it applies to",
    "rewards/<name>/std": "standard deviation of this reward over the completions it applies to",
    "verdicts/<name>/<verdict>": "completions of the rollout that this reward gave this verdict, count",
    "funnel/<name>/<stage>": "share of completions that came this far: terminated, extracted, parsed, equivalent",
    "solved_rate": "share of judged completions that are correct, 0 to 1",
    "groups/no_signal": "share of groups whose completions all have the same reward and so teach nothing, 0 to 1",
    "groups/with_signal": "share of groups that carry a signal: at least two valid rewards, not all equal, 0 to 1",
    "groups/sampled": "groups sampled for the rollout; only with dynamic sampling, count",
    "groups/kept": "informative groups that the rollout trains on, count",
    "sampling_rounds": "rounds of sampling that it took, count",
    "discarded/<fate>": "groups left out: all_right, all_wrong, no_signal, masked, or surplus in a full batch; count",
    "groups/dropped": "groups with fewer than two valid rows, left out of the update, count",
    "completions/mean_length": "mean length of the completions, tokens",
    "completions/min_length": "shortest completion, tokens",
    "completions/max_length": "longest completion, tokens",
    "completions/clipped_ratio": "share of completions cut off at max_completion_length, 0 to 1",
    "completions/missing": "completions that a server lost twice; their groups teach nothing, count",
    "loss": "value of the minimised objective; near 0 by construction, not a sign of progress",
    "nll": "mean negative log-likelihood of the trained tokens in supervised fine-tuning, nats",
    "divergence": "of a student from its teacher per token of its own text, in distillation (beta 1: reverse KL), nats",
    "mean_token_accuracy": "share of the trained tokens that the model found likeliest, 0 to 1",
    "clip_ratio/low": "share of tokens with negative advantage whose ratio fell below 1 - epsilon, 0 to 1",
    "clip_ratio/high": "share of tokens with A > 0 and ratio above 1 + epsilon_high (cispo: all above the cap), 0 to 1",
    "clip_ratio/region": "share of tokens clipped on either side, 0 to 1",
    "kl": "estimated KL divergence from the reference per token (k3), nats; only with beta > 0",
    "entropy": "entropy of the distribution that tokens are drawn from, mean over completion tokens, nats",
    "grad_norm": "global L2 norm of the gradient before clipping",
    "learning_rate": "learning rate of this update",
    "tokens_per_second": "prompt and completion tokens of the rollout per second of its first update, all processes",
    "step_time": "wall-clock time of this update, with sampling and scoring on the first of a rollout, seconds",
    "seconds/sampling": "wall-clock time spent sampling completions, seconds",
    "seconds/scoring": "wall-clock time spent in reward functions, seconds",
    "seconds/update": "wall-clock time of forward, backward and optimizer, seconds",
    "sampler_gap/mean": "mean absolute difference of sampler and trainer log-probability per token, nats",
    "sampler_gap/max": "largest absolute difference of sampler and trainer log-probability of a token, nats",
    "importance_weight/mean": "mean weight old / sampler probability, of tokens or sequences, after truncation or mask",
    "importance_weight/effective": "effective sample size under these weights, as a share of the samples, 0 to 1",
    "importance_weight/limited": "share of tokens or sequences whose weight was truncated or masked, 0 to 1",
    "off_policy/masked": "share of completions taken out by off_policy_mask_threshold, 0 to 1",
    "rows/skipped": "rows that the update left out because their gradient is 0; means over tokens are of the rest",
    "tokens/sampled": "completion tokens sampled for the rollout, discarded groups included, count",
    "tokens/trained": "completion tokens that this update ran forward and backward for, count; at 0 entropy is unknown",
    "schedule/changes": "lines of the schedule that hold, count",
    "problems/retired": "problems that are not drawn again because they are solved, count",
    "num_tokens": "prompt and completion tokens of the rollout, count",
    "rollout": "rounds of sampling finished before this one, count",
    "epoch": "passes over the training problems before this rollout, fractional",
    "skipped_updates": "updates refused since the start of the run because loss or gradient was not finite, count",
    "eval/pass@<k>": "chance that at least one of k samples of a held-out problem is correct, mean over problems",
    "eval/maj@<k>": "share of held-out problems whose most frequent answer among k samples is correct, 0 to 1",
    "eval/format_rate": "share of held-out completions in the required format, 0 to 1",
    "eval/mean_length": "mean length of held-out completions, tokens",
    "eval/nll": "negative log-likelihood of a held-out row's token in supervised fine-tuning, mean over batches, nats",
    "eval/mean_token_accuracy": "share of the tokens of held-out rows that were likeliest, mean over batches, 0 to 1",
    "eval/problems": "held-out problems evaluated, count",
    "eval/samples": "completions sampled for each held-out problem, count",
    "eval/clipped_ratio": "share of held-out completions cut off at max_completion_length, 0 to 1",
}


def describe(metric: str) -> str | None:
    """The documentation of a metric by its full name, None for a name that has none."""
    return next((text for pattern, text in METRICS.items() if _matcher(pattern).fullmatch(metric)), None)


class MetricsLog:
    """Appends to `<run_dir>/metrics.jsonl`. Used by the main process only."""

    def __init__(self, run_dir: Path | str) -> None:
        self.path = Path(run_dir) / METRICS_FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line for update `step`; `time` is in seconds since 1970. NaN and infinity become null."""
        line = {"step": step, "time": round(time.time(), 3)} | {name: _finite(v) for name, v in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def rewind(self, step: int, *, evaluated: int) -> None:
        """Drops what a resumed run writes anew: the lines after `step`, evaluations after `evaluated`, and a last line
        cut off by a kill."""
        lines = read_lines(self.path)
        kept = [line for line in lines if line["step"] <= (evaluated if _is_evaluation(line) else step)]
        write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def read_metrics(run_dir: Path | str) -> list[dict[str, float | None]]:
    """The lines of a run in the order they were written; a last line cut off by a kill is left out."""
    return read_lines(Path(run_dir) / METRICS_FILE)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file that is written line by line and may have been cut off; empty if missing."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        last = [json.loads(line) for line in lines[-1:]]
    except json.JSONDecodeError:
        last = []
    return [json.loads(line) for line in lines[:-1]] + last


def _is_evaluation(line: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in line)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _matcher(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace("<name>", r"[^/]+").replace("<stage>", r"[a-z]+")
    escaped = escaped.replace("<verdict>", r"[a-z_]+")
    escaped = escaped.replace("<fate>", r"[a-z_]+")
    return re.compile(escaped.replace("<k>", r"\d+"))
