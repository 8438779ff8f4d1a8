"""Ten updates whose curve is stored: whatever changes a training run shows here, wanted or not.

After a wanted change, write the curve anew with `python -m tests.golden.test_ten_steps` and say why in the commit.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from data.problem import Problem
from grpo.step import training_step
from tests.grpo import parts

CURVE = Path(__file__).with_name("ten_steps.json")
PROBLEMS = [
    Problem(id=prompt, question=prompt, answer="", prompt=prompt, columns={"wanted": wanted})
    for prompt, wanted in [("1 + 2 =", "digits"), ("hello", "capitals"), ("a longer prompt: 3 - 1 =", "digits")]
]
# Float sums differ in the last bits between machines; one thread, two threads and scalar kernels differ by 2e-6 here.
# A draw that falls to the other side of a boundary would move `reward` by more; none was seen.
RELATIVE = 1e-4
UPDATE_METRICS = ("grad_norm", "entropy", "kl", "clip_ratio/region")
ROLLOUT_METRICS = ("reward", "reward_std", "completions/mean_length", "groups/no_signal")


def curve(model: Path) -> list[dict[str, float]]:
    """Five rollouts of 3 x 6 completions, two minibatches each, with a KL term, on random weights."""
    cfg = parts.config(
        model,
        reward_funcs=["tests.learning.toy_rewards:share_of_wanted"],
        num_generations=6,
        num_minibatches=2,
        beta=0.05,
        max_completion_length=10,
        max_tokens_per_microbatch=64,
        warmup_steps=3,
        seed=11,
    )
    learner = parts.learner(cfg)
    lines = []
    for rollout in range(5):
        first = True
        for result, stats in training_step(learner, PROBLEMS, rollout=rollout, trainer_state=parts.trainer_state()):
            line = {name: stats.metrics()[name] for name in UPDATE_METRICS}
            lines.append(line | ({name: result.metrics[name] for name in ROLLOUT_METRICS} if first else {}))
            first = False
    return lines


@pytest.mark.normal
def test_ten_updates_follow_the_stored_curve(tmp_path: Path) -> None:
    stored, found = json.loads(CURVE.read_text()), curve(parts.save_sharp_model(tmp_path))
    assert len(found) == len(stored) == 10
    for update, (line, expected) in enumerate(zip(found, stored, strict=True), start=1):
        assert line == pytest.approx(expected, rel=RELATIVE, abs=1e-7), f"update {update}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        CURVE.write_text(json.dumps(curve(parts.save_sharp_model(Path(folder))), indent=1) + "\n")
    print(f"wrote {CURVE}")
