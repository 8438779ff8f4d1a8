"""R1's format, on strings and on messages."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Rubric
from rewards.format import is_well_formed

GOOD = "<think>1 + 1</think>\n<answer>2</answer>"
BAD = [
    "",
    "   ",
    "2",
    "<think></think><answer>2</answer>",
    "<think> \n\t</think><answer>2</answer>",
    "<think>\u200b\u2060</think><answer>2</answer>",
    "<think>a</think><answer></answer>",
    "<think>a</think><answer> </answer>",
    "<think>a</think><answer>2</answer> bye",
    "so <think>a</think><answer>2</answer>",
    "<think>a</think> so <answer>2</answer>",
    "<answer>2</answer><think>a</think>",
    "<think>a<answer>2</answer></think>",
    "<think>a</think><answer>2",
    "<think>a</think><answer>2</answer><answer>2</answer>",
    "<think>a<think>b</think><answer>2</answer>",
    "<think>a</think></think><answer>2</answer>",
    "a</think><answer>2</answer>",
    "<THINK>a</THINK><answer>2</answer>",
]


@pytest.mark.parametrize("text", [GOOD, f"\n {GOOD} \n", "<think>a</think><answer>b</answer>"])
def test_well_formed(text):
    assert is_well_formed(text)


@pytest.mark.parametrize("text", BAD)
def test_not_well_formed(text):
    assert not is_well_formed(text)


def test_the_prompt_may_have_opened_the_thinking():
    assert is_well_formed("1 + 1</think><answer>2</answer>", think_opened=True)
    assert is_well_formed(GOOD, think_opened=True)
    assert not is_well_formed("</think><answer>2</answer>", think_opened=True)
    assert not is_well_formed("1 + 1<answer>2</answer>", think_opened=True)


def test_the_reward_on_strings_and_messages():
    texts = [GOOD, "2", "", "a</think><answer>2</answer>"]
    prompts = ["q", "q", "q", "q <think>\n"]
    messages = [
        [{"role": "assistant", "content": GOOD}],
        [{"content": "2"}],
        [],
        [{"role": "assistant", "content": [{"type": "text", "text": "a</think><answer>2</answer>"}]}],
    ]
    chats = [[{"role": "user", "content": "q"}]] * 3 + [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>"}]
    ]
    for given_prompts, completions in ((prompts, texts), (chats, messages)):
        result = Rubric.from_config(["format"]).score(
            prompts=given_prompts,
            completions=completions,
            completion_ids=[[1]] * 4,
            columns={},
            trainer_state=None,
            step=0,
        )
        assert result.rewards == [1.0, 0.0, 0.0, 1.0]
        assert result.correct == [None] * 4


pieces = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "a", " ", "\n", "<", "think>"]))


@given(pieces.map("".join))
def test_equals_a_regular_expression_with_a_count(text):
    pattern = r"\s*<think>(.*\S.*)</think>\s*<answer>(.*\S.*)</answer>\s*"
    found = re.fullmatch(pattern, text, re.DOTALL)
    once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    assert is_well_formed(text) == bool(found and once)
