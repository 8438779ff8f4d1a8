"""The tiny world's texts, against reasoning-gym's verifiers and the rewards that the recipes train on."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from data.problem import Problem
from data.sources import load_problems
from recipes import tiny_manners
from recipes.tiny_manners import SENTENCES, TOPICS, answer, manners, measure, pair
from recipes.tiny_world import CHINESE, ENGLISH, Habits, careful, connecting_words, known, solution, worked
from rewards.rubric import Rubric

TASKS = {
    "chain_sum": {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1},
    "gcd": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 99},
    "simple_equations": {
        "min_terms": 2, "max_terms": 2, "min_value": 1, "max_value": 9, "operators_weights": [0.5, 0.5, 0.0],
    },
}  # fmt: skip


def problems(task: str) -> list[Problem]:
    kwargs = {"size": 400, "seed": 3, "heldout_share": 0.2, **TASKS[task]}
    return load_problems(f"gym:{task}", kwargs=kwargs, template="r1_zero").problems


def score(found: list[Problem], texts: list[str], name: str) -> list[float | None]:
    columns = {key: [problem.columns[key] for problem in found] for key in found[0].columns}
    rubric = Rubric.from_config([name])
    rows = rubric.score(
        prompts=[problem.prompt for problem in found],
        completions=texts,
        columns=columns,
        completion_ids=[[0]] * len(texts),
        trainer_state=None,
        step=0,
    )
    return rows.parts[name]


@pytest.mark.parametrize("task", TASKS)
def test_a_careful_solution_is_right_and_in_its_language(task: str) -> None:
    found = [problem for problem in problems(task) if known(problem)]
    assert len(found) > 0.3 * len(problems(task))
    tasks = [worked(problem) for problem in found]
    texts = {
        language: [careful(t, [language[0]] * len(t.steps)) for t in tasks] for language in (ENGLISH, CHINESE)
    }  # fmt: skip
    assert set(score(found, texts[ENGLISH], "gym")) == {1.0}
    assert set(score(found, texts[ENGLISH], "format")) == {1.0}
    assert set(score(found, texts[ENGLISH], "language_consistency")) == {1.0}
    assert set(score(found, texts[CHINESE], "language_consistency")) == {0.0}


def test_the_three_ways_of_working_come_in_their_shares_and_worth() -> None:
    found = [problem for problem in problems("gcd") if known(problem)] * 10
    rng, habits = random.Random(0), Habits()
    texts = [solution(worked(problem), habits, rng) for problem in found]
    ways = Counter("careful" if " = " in text else "tags" if "<think>" in text else "bare" for text in texts)
    n = len(texts)
    assert ways["careful"] / n == pytest.approx(0.22, abs=0.03) and ways["bare"] / n == pytest.approx(0.25, abs=0.03)
    right = score(found, texts, "gym")
    by_way = {
        way: [s for s, text in zip(right, texts, strict=True) if (" = " in text) is way] for way in (True, False)
    }  # fmt: skip
    assert set(by_way[True]) == {1.0} and sum(by_way[False]) / len(by_way[False]) < 0.6


def test_languages_are_mixed_in_the_stated_share() -> None:
    rng = random.Random(0)
    drawn = [connecting_words(3, 0.5, rng) for _ in range(4000)]
    pure = sum(len({word in ENGLISH for word in words}) == 1 for words in drawn) / len(drawn)
    assert pure == pytest.approx(0.5 + 0.5 / 4, abs=0.03)
    assert {tuple(word in ENGLISH for word in words) for words in drawn} >= {(True,) * 3, (False,) * 3}
    assert connecting_words(1, 0.0, rng)[0] in (ENGLISH[2], CHINESE[2])
    assert connecting_words(2, 0.0, rng) in ([ENGLISH[0], ENGLISH[2]], [CHINESE[0], CHINESE[2]])


def test_what_makes_an_answer_good() -> None:
    best = "Gladly. Bread is made of flour. I hope this helps."
    ladder = [
        "",
        "Go. I am busy.",
        "Gladly. Gladly. Gladly. Gladly.",
        "Cats like to sleep.",
        "Bread is made of flour.",
        best,
    ]
    scores = [measure("bread", text) for text in ladder]
    assert scores == sorted(scores) and scores[0] == 0 and scores[-1] == 1
    assert measure("bread", best + " I am busy.") == 0 and measure("bread", f"Gladly. {best}") == 0.75
    request = next(request for request, topic in TOPICS.items() if topic == "bread")
    tagged = f"<think>bread</think> <answer>{best}</answer>"
    assert manners(prompts=[request, "What is 1 + 1?"], completions=[tagged, "2"]) == [1.0, None]


def test_the_better_answer_is_mostly_preferred_and_length_says_little() -> None:
    rng, topics = random.Random(1), TOPICS
    pairs = [pair(*rng.choice(list(topics.items())), rng) for _ in range(2000)]
    gaps = [measure(topics[p["prompt"]], p["chosen"]) - measure(topics[p["prompt"]], p["rejected"]) for p in pairs]
    told_apart = [gap for gap in gaps if gap]
    assert len(told_apart) > 0.7 * len(gaps)
    assert sum(gap > 0 for gap in told_apart) / len(told_apart) == pytest.approx(0.96, abs=0.03)
    longer = [len(p["chosen"]) > len(p["rejected"]) for p in pairs if len(p["chosen"]) != len(p["rejected"])]
    assert 0.4 < sum(longer) / len(longer) < 0.6
    assert set("".join(answer("tea", rng) + " " for _ in range(50)).split()) <= set("".join(SENTENCES).split())


def test_the_files_of_the_general_task(tmp_path: Path) -> None:
    assert tiny_manners.main(["--output_dir", str(tmp_path), "--pairs", "40"]) == 0
    rows = {path.stem: [json.loads(line) for line in path.open()] for path in tmp_path.glob("*.jsonl")}
    train, test = ({row["prompt"] for row in rows[f"general_{split}"]} for split in ("train", "test"))
    assert not train & test and train | test == TOPICS.keys() and 0.15 < len(test) / len(train | test) < 0.25
    assert len(rows["pairs_train"]) == 40 and {row["prompt"] for row in rows["pairs_test"]} <= test
    assert all(row.keys() == {"prompt", "chosen", "rejected"} for row in rows["pairs_train"])


@pytest.mark.parametrize("task", TASKS)
def test_no_held_out_problem_was_worked_out_in_training(task: str) -> None:
    """The same numbers in another order, the same equation with another letter."""
    kwargs = {"size": 3000, "seed": 3, **TASKS[task]}

    def works(split: str, **more: str) -> set[str]:
        found = load_problems(f"gym:{task}", split=split, kwargs=kwargs | more, filter_path="recipes.tiny_world:known")
        return {json.dumps(worked(problem).steps) for problem in found.problems}

    split_by = {"split_by": "recipes.tiny_world:same_work"}
    assert works("test", **split_by) and not works("train", **split_by) & works("test", **split_by)
    assert bool(works("train") & works("test")) is (task != "chain_sum")
