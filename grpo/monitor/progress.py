"""What a person watching a run sees: a bar with the last values, a line per update, and advice when it is needed."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping

from tqdm import tqdm

Metrics = Mapping[str, float]

LOSS_NOTE = (
    "A loss near 0 is normal: the ratio to the sampling policy is 1 and the advantages of each group sum to zero. "
    "Watch reward, solved rate and grad norm instead."
)
NO_GRADIENT = (
    "ALARM: the gradient is 0 although some groups carry signal, so nothing is being learnt. Check that the policy has "
    "trainable weights (requires_grad, lora_target_modules) and that mask_truncated_completions does not mask them all."
)
EARLY_ROLLOUTS = 2  # advice on the set-up comes while it is still cheap to stop
PHASES = ("sampling", "scoring", "update")


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _thousands(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.0f}"


def _short(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


# metric -> (label, how to write the value); behind the reward stand its parts, where there are several
FIELDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "reward": ("reward", "{:.3f}".format),
    "solved_rate": ("solved", _percent),
    "groups/no_signal": ("no signal", _percent),
    "groups/sampled": ("groups", "{:.0f}".format),
    "groups/kept": ("kept", "{:.0f}".format),
    "discarded/all_right": ("all right", "{:.0f}".format),
    "discarded/all_wrong": ("all wrong", "{:.0f}".format),
    "discarded/masked": ("masked", "{:.0f}".format),
    "completions/mean_length": ("length", "{:.1f}".format),
    "completions/clipped_ratio": ("cut off", _percent),
    "clip_ratio/region": ("clip", _percent),
    "kl": ("kl", "{:.4f}".format),
    "entropy": ("entropy", "{:.3f}".format),
    "grad_norm": ("grad norm", "{:.3f}".format),
    "learning_rate": ("lr", "{:.2e}".format),
    "tokens_per_second": ("tok/s", _thousands),
}
OF_UPDATE = ("clip_ratio/region", "kl", "entropy", "grad_norm")  # not measured in one, they leave the line
BAR_FIELDS = ("reward", "solved_rate", "completions/mean_length", "kl", "entropy", "learning_rate", "tokens_per_second")


class Progress:
    """The live display. Values of a rollout stay on display until the next rollout brings new ones, those of an update
    for that update.

    total_updates, done_updates: optimizer steps of the whole run, and those a resumed run has behind it.
    logging_steps: a line every so many updates. disable: True on every process but the main one.
    random_policy: the weights are drawn and not learnt, so that advice on texts without an answer helps nobody.
    The bar needs a terminal on stderr; lines and advice go to stdout and are printed anywhere.
    """

    def __init__(
        self,
        total_updates: int,
        *,
        done_updates: int = 0,
        logging_steps: int = 1,
        disable: bool = False,
        random_policy: bool = False,
    ) -> None:
        self.logging_steps = logging_steps
        self.disable = disable
        self.advisor = Advisor(random_policy=random_policy)
        self.shown: dict[str, float] = {}
        self.seconds = dict.fromkeys(PHASES, 0.0)  # since the last line
        # None: tqdm switches itself off where stderr is no terminal
        self.bar = tqdm(
            total=total_updates, initial=done_updates, unit="update", disable=disable or None, dynamic_ncols=True
        )

    def update(self, step: int, metrics: Metrics) -> None:
        """Shows update `step` (the first is 1) or an evaluation made after it."""
        if self.disable:
            return
        evaluation = {name.removeprefix("eval/"): v for name, v in metrics.items() if name.startswith("eval/")}
        if evaluation:
            values = "  ".join(f"{name} {_short(value)}" for name, value in evaluation.items())
            self.write(f"{self._place(step)}  held-out  {values}  {metrics['seconds/evaluation']:.1f}s")
        else:
            self._update(step, metrics)

    def evaluating(self, step: int, problems: int, samples: int) -> None:
        """Said before an evaluation, which may take long."""
        self.write(f"{self._place(step)}  held-out: sampling {problems} problems x {samples} ...")

    def _update(self, step: int, metrics: Metrics) -> None:
        if not self.shown:
            self.write(LOSS_NOTE)
        shown = {name: value for name, value in self.shown.items() if name not in OF_UPDATE} | metrics
        self.shown = {name: value for name, value in shown.items() if math.isfinite(value)}
        for advice in self.advisor.after_update(metrics):
            self.write(advice)
        for phase in PHASES:
            self.seconds[phase] += metrics.get(f"seconds/{phase}", 0.0)
        if step % self.logging_steps == 0 or step == self.bar.total:
            self.write(f"{self._place(step)}  {summary_line(self.shown, self.seconds)}")
            self.seconds = dict.fromkeys(PHASES, 0.0)
        self.bar.set_postfix_str(_joined(BAR_FIELDS, self.shown, ", "), refresh=False)
        self.bar.update(step - self.bar.n)

    def _place(self, step: int) -> str:
        return f"{step:>6}/{self.bar.total}"

    def write(self, text: str) -> None:
        """A line of text above the bar, at once in a log file too."""
        if not self.disable:
            tqdm.write(text)
            sys.stdout.flush()

    def close(self) -> None:
        for advice in self.advisor.after_rollout():
            self.write(advice)
        self.bar.close()


class Advisor:
    """Looks for runs that cannot learn, and says each thing once."""

    def __init__(self, *, random_policy: bool = False) -> None:
        self.random_policy = random_policy
        self.rollouts = 0
        self.rollout: Metrics = {}
        self.largest_grad_norm: float | None = None
        self.given: set[str] = set()

    def after_update(self, metrics: Metrics) -> list[str]:
        """Advice due after one update, given its metrics."""
        advice: list[str] = []
        if "reward" in metrics:  # the first update of a rollout
            advice += self.after_rollout()
            self.rollouts += 1
            self.rollout, self.largest_grad_norm = metrics, None
            if self.rollouts <= EARLY_ROLLOUTS and not self.random_policy:
                advice += self._new(_set_up_advice(metrics))
        grad_norm = metrics.get("grad_norm", math.nan)
        if math.isfinite(grad_norm):
            self.largest_grad_norm = max(grad_norm, self.largest_grad_norm or 0.0)
        return advice

    def after_rollout(self) -> list[str]:
        """Advice due when all updates of a rollout are done.

        A single minibatch may hold nothing but groups without signal, so the gradient is judged over the rollout.
        """
        signal = self.rollout.get("groups/with_signal", 0.0) > 0.0
        if not signal or self.largest_grad_norm != 0.0:
            return []
        return self._new([NO_GRADIENT])

    def _new(self, advice: list[str]) -> list[str]:
        new = [text for text in advice if text not in self.given]
        self.given.update(new)
        return new


def _set_up_advice(rollout: Metrics) -> list[str]:
    advice = []
    if rollout.get("completions/clipped_ratio") == 1.0:
        advice.append(
            "WARNING: every completion was cut off at max_completion_length. Raise it, or check that the model can end "
            "a completion (eos_token, stop_strings)."
        )
    if rollout.get("groups/no_signal") == 1.0:
        advice.append(
            "WARNING: every group got one and the same reward for all its completions, so there is nothing to learn "
            "from. Use problems that the model solves sometimes: easier or harder ones."
        )
    advice += [
        f"WARNING: reward {name!r} found no readable answer in any completion. Page through them with `grpo show RUN` "
        "(needs log_completions) and make the prompt ask for the form of answer that this reward reads."
        for name in _rewards_without_answers(rollout)
    ]
    return advice


def _rewards_without_answers(rollout: Metrics) -> list[str]:
    counts: dict[str, dict[str, float]] = {}
    for metric, count in rollout.items():
        if metric.startswith("verdicts/"):
            name, verdict = metric.removeprefix("verdicts/").rsplit("/", 1)
            counts.setdefault(name, {})[verdict] = count
    return [name for name, of_verdict in counts.items() if _none_readable(of_verdict)]


def _none_readable(counts: Mapping[str, float]) -> bool:
    unreadable = counts.get("no_answer", 0) + counts.get("unparsed", 0)
    return 0 < unreadable == sum(counts.values()) - counts.get("skipped", 0)


def summary_line(metrics: Metrics, seconds: Mapping[str, float]) -> str:
    """One readable line of the metrics that are there (units: METRICS), and the seconds of each phase."""
    line = _joined(FIELDS, metrics, "  ")
    total = sum(seconds.values())
    if total == 0.0:
        return line
    shares = ", ".join(f"{phase} {value / total:.0%}" for phase, value in seconds.items())
    return f"{line}  {total:.1f}s ({shares})"


def _joined(names: Iterable[str], metrics: Metrics, separator: str) -> str:
    return separator.join(_field(name, metrics) for name in names if name in metrics)


def _field(name: str, metrics: Metrics) -> str:
    label, write = FIELDS[name]
    text = f"{label} {write(metrics[name])}"
    parts = {metric.split("/")[1]: mean for metric, mean in metrics.items() if re.fullmatch("rewards/.*/mean", metric)}
    if name != "reward" or len(parts) < 2:
        return text
    return f"{text} ({', '.join(f'{part} {_short(mean)}' for part, mean in parts.items())})"
