"""Text -> score. Importing this takes neither torch nor sympy along, so that a reward author sees results at once."""

from rewards.registry import reward as reward_decorator
from rewards.reward import Reward, RewardError, Verdict
from rewards.rubric import Rubric, ScoredRows

reward = reward_decorator

__all__ = ["Reward", "RewardError", "Rubric", "ScoredRows", "Verdict", "reward"]
