import pytest

from data.problem import DataError
from data.templates import R1_ZERO_TEMPLATE, build_prompt

# Typed from Table 1 of DeepSeek-R1 (arXiv 2501.12948), sentence by sentence: the oracle of the template.
PAPER = [
    "A conversation between User and Assistant.",
    "The user asks a question, and the Assistant solves it.",
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer.",
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively,"
    " i.e., <think> reasoning process here </think> <answer> answer here </answer>.",
    "User: {question}. Assistant:",
]


def test_r1_zero_is_the_papers_prompt():
    assert " ".join(PAPER) == R1_ZERO_TEMPLATE


def test_questions_with_braces_survive():
    question = r"What is {x} in \frac{1}{2} {question} {0}"
    assert build_prompt(question, template="r1_zero").endswith(f"User: {question}. Assistant:")
    assert build_prompt(question, template="plain") == question


def test_chat_has_a_system_turn_only_when_given():
    user = {"role": "user", "content": "1 + 1?"}
    assert build_prompt("1 + 1?", template="chat") == [user]
    system = {"role": "system", "content": "Be brief."}
    assert build_prompt("1 + 1?", template="chat", system_prompt="Be brief.") == [system, user]


@pytest.mark.parametrize("template", ["r1_zero", "plain"])
def test_a_system_prompt_is_never_lost_silently(template):
    with pytest.raises(DataError, match="system"):
        build_prompt("1 + 1?", template=template, system_prompt="Be brief.")


def test_unknown_template_names_the_known_ones():
    with pytest.raises(DataError, match="r1_zero, chat or plain"):
        build_prompt("1 + 1?", template="qwen")
