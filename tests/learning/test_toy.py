"""A toy that GRPO has to solve in seconds, from random weights, through the step that real runs use."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.problem import Problem
from grpo.step import training_step
from tests.grpo import parts

REWARD = "tests.learning.toy_rewards:share_of_wanted"
PROBLEMS = [
    Problem(id=prompt, question=prompt, answer="", prompt=prompt, columns={"wanted": wanted})
    for prompt, wanted in [("1 + 2 =", "digits"), ("hello", "capitals"), ("3 - 1 =", "digits"), ("world", "capitals")]
]
KNOBS = {
    "problems_per_rollout": len(PROBLEMS),
    "num_generations": 16,
    "max_completion_length": 6,
    "learning_rate": 3e-3,
    "reward_funcs": [REWARD],
}


@pytest.mark.normal
@pytest.mark.parametrize(
    "algorithm",
    [
        {"loss_type": "grpo", "learning_rate": 5e-3, "max_steps": 45},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "num_minibatches": 2, "num_iterations": 2, "max_steps": 120},
    ],
    ids=["grpo", "dr_grpo_off_policy"],
)
def test_the_reward_of_each_kind_of_problem_rises_to_its_own_maximum(
    tiny_model: Path, algorithm: dict[str, object]
) -> None:
    """Mean reward of each problem in the last rollout above 0.9, from below 0.45; 5 seconds of one core. What is paid
    depends on the prompt, so rows that got another row's advantage or prompt could not learn it. About one seed in
    fifteen stays at 0.6 to 0.85 for one problem (3 of 44 runs), and which one it is changes with the last bits."""
    cfg = parts.config(tiny_model, **{**KNOBS, **algorithm, "seed": 48})
    learner = parts.learner(cfg)
    rewards = []
    for rollout in range(cfg.optim.max_steps // cfg.updates_per_rollout):
        for result, _ in training_step(learner, PROBLEMS, rollout=rollout, trainer_state=parts.trainer_state(rollout)):
            rewards.append(result.rewards_PG.mean(dim=1))
    assert rewards[0].max() < 0.45
    assert rewards[-1].min() > 0.9, [round(r.mean().item(), 2) for r in rewards[::5]]
