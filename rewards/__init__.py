"""Text -> score. Importing this takes neither torch nor sympy along, so that a reward author sees results at once."""

from rewards.registry import reward
from rewards.reward import Reward, RewardError, Verdict
from rewards.rubric import Rubric, ScoredRows

__all__ = ["Reward", "RewardError", "Rubric", "ScoredRows", "Verdict", "reward"]
