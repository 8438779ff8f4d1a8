"""From `reward_funcs` in a YAML file to callables."""

import functools
import math
import sys
import types

import pytest

from rewards import RewardError, Rubric, reward
from rewards import registry as registry_module


@pytest.fixture
def user_module(monkeypatch):
    """A module of rewards as a user writes it."""
    monkeypatch.setattr(registry_module, "_registered", {})
    module = types.ModuleType("user_rewards")
    source = """
from rewards import reward

def plain(completions, **kwargs):
    return [1.0] * len(completions)

@reward("nice")
def decorated(completions, **kwargs):
    return [2.0] * len(completions)

@reward("also")
class Scaled:
    def __init__(self, scale=3.0):
        self.scale = scale
    def __call__(self, completions, **kwargs):
        return [self.scale] * len(completions)

def make_constant(value=4.0):
    def constant(completions, **kwargs):
        return [value] * len(completions)
    return constant

not_callable = 5
"""
    sys.modules["user_rewards"] = module
    exec(source, module.__dict__)
    yield module
    del sys.modules["user_rewards"]


def scores(rubric):
    result = rubric.score(
        prompts=["p"], completions=["c"], completion_ids=[[1]], columns={}, trainer_state=None, step=0
    )
    return {name: values[0] for name, values in result.parts.items()}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("user_rewards:plain", {"plain": 1.0}),
        ("user_rewards.plain", {"plain": 1.0}),
        ("user_rewards:decorated", {"nice": 2.0}),
        ("user_rewards:Scaled", {"also": 3.0}),
        ({"name": "user_rewards:Scaled", "scale": 7.0}, {"also": 7.0}),
        ("user_rewards:make_constant", {"make_constant": 4.0}),
        ({"name": "user_rewards:make_constant", "value": 9.0, "weight": 0.5}, {"make_constant": 9.0}),
    ],
)
def test_paths_names_and_factories(user_module, spec, expected):
    assert scores(Rubric.from_config([spec])) == expected


def test_a_path_makes_the_other_names_of_its_module_known_in_any_order(user_module):
    user_module_names = ["nice", {"name": "also", "scale": 5.0}, "user_rewards:plain"]
    assert scores(Rubric.from_config(user_module_names)) == {"nice": 2.0, "also": 5.0, "plain": 1.0}


def test_callables_and_partials_are_taken_as_they_are(user_module):
    bound = functools.partial(user_module.plain, extra=1)
    assert scores(Rubric.from_config([bound, user_module.Scaled(8.0)])) == {"plain": 1.0, "Scaled": 8.0}


def test_weights_come_from_either_place_but_not_from_both(user_module):
    specs = [{"name": "user_rewards:plain", "weight": 2}, "nice"]
    assert [f.weight for f in Rubric.from_config(specs).functions] == [2.0, 1.0]
    assert [f.weight for f in Rubric.from_config(["user_rewards:plain", "nice"], [0, 3]).functions] == [0.0, 3.0]
    with pytest.raises(RewardError, match="both"):
        Rubric.from_config(specs, [1.0, 1.0])
    with pytest.raises(RewardError, match="1 reward_weights for 2 reward_funcs"):
        Rubric.from_config(["user_rewards:plain", "nice"], [1.0])


@pytest.mark.parametrize("weight", [math.nan, math.inf, -0.1, "1", True])
def test_a_weight_is_a_finite_number_of_at_least_zero(weight):
    with pytest.raises(RewardError, match="weight of format"):
        Rubric.from_config([{"name": "format", "weight": weight}])
    with pytest.raises(RewardError, match="weight of format"):
        Rubric.from_config(["format"], [weight])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["acuracy"], "did you mean 'accuracy'"),
        (["zzzzzz"], "known are accuracy, "),
        (["no_such_module:f"], "cannot load the reward 'no_such_module:f'"),
        (["user_rewards:missing"], "cannot load"),
        (["user_rewards:not_callable"], "cannot be called"),
        (["format", "format"], "format more than once"),
        (["user_rewards:plain", {"name": "user_rewards:plain", "weight": 2.0}], "plain more than once"),
        ([{"name": "accuracy", "requires_format": True}], "requires_format"),
        ([{"name": "user_rewards:plain", "scale": 2}], "takes no arguments"),
        ([{"weight": 1.0}], "a mapping with a `name`"),
        ([3], "a mapping with a `name`"),
        ([], "non-empty list"),
        ("accuracy", "non-empty list"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(user_module, specs, message):
    with pytest.raises(RewardError, match=message):
        Rubric.from_config(specs)


def test_a_taken_name_is_refused(user_module):
    with pytest.raises(RewardError, match=r"taken by rewards\.accuracy:Accuracy"):
        reward("accuracy")(lambda completions: [])
    with pytest.raises(RewardError, match="'nice' is taken by user_rewards:decorated"):
        reward("nice")(lambda completions: [])
    assert reward("nice")(user_module.decorated) is user_module.decorated
