import json

import pytest
import reasoning_gym

from data.gym import gym_score, load_gym, running_totals_below_30
from data.gym_tasks import OWN_SCORER_TASKS, REFUSED_TASKS
from data.problem import DataError
from data.rows import normalised
from data.sources import load_problems

ONE_DIGIT = {"min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}


def raw_questions(seed: int, size: int = 500) -> set[str]:
    items = reasoning_gym.create_dataset("chain_sum", seed=seed, size=size)
    return {normalised(item["question"]) for item in items}


def ours(split: str, seed: int, size: int = 500, **settings) -> set[str]:
    problems = load_gym("chain_sum", split=split, seed=seed, size=size, **settings).problems
    return {normalised(problem.question) for problem in problems}


def test_splitting_by_seed_would_leak_the_test_set():
    train, test = raw_questions(seed=1), raw_questions(seed=2)
    assert len(train & test) / len(test) > 0.99


@pytest.mark.parametrize("settings", [{}, ONE_DIGIT])
def test_our_splits_are_disjoint_for_any_two_seeds(settings):
    for train_seed, test_seed in [(1, 1), (1, 2), (2, 1), (0, 12345)]:
        train, test = ours("train", train_seed, **settings), ours("test", test_seed, **settings)
        assert train and test and not train & test


def test_the_two_splits_are_everything_and_the_share_is_as_asked():
    train, test = ours("train", 5, size=4000), ours("test", 5, size=4000)
    assert train | test == raw_questions(5, size=4000)
    assert len(test) / len(train | test) == pytest.approx(0.2, abs=0.025)  # 4 standard deviations
    assert len(ours("test", 5, size=4000, heldout_share=0.5)) / len(train | test) == pytest.approx(0.5, abs=0.03)
    assert test < ours("test", 5, size=4000, heldout_share=0.5)  # a larger share takes nothing back into training


def test_a_question_appears_once_and_the_report_adds_up():
    loaded = load_gym("chain_sum", size=3000, seed=1, **ONE_DIGIT)
    questions = [normalised(problem.question) for problem in loaded.problems]
    assert len(set(questions)) == len(questions) == loaded.report.kept
    report = loaded.report
    assert report.repeated > 0 and report.other_split > 0
    assert report.rows_read == 3000 == report.kept + report.repeated + report.other_split + len(report.bad_rows)


def test_ids_depend_on_the_question_only():
    by_question = {p.question: p.id for p in load_gym("chain_sum", size=300, seed=1).problems}
    again = {p.question: p.id for p in load_gym("chain_sum", size=300, seed=3).problems}
    shared = by_question.keys() & again.keys()
    assert len(shared) > 200
    assert all(by_question[question] == again[question] for question in shared)
    assert len(set(by_question.values())) == len(by_question)
    assert next(iter(by_question.values())).startswith("gym:chain_sum:")


def test_filter_keeps_the_stated_share_of_one_digit_chains():
    """Of raw chains with 3 to 5 one-digit terms 58 % keep every running total within 0..29. Of distinct questions it is
    56 %: short chains pass more often, and repeat more often."""
    items = reasoning_gym.create_dataset("chain_sum", size=20_000, seed=0, **ONE_DIGIT)
    assert sum(map(stays_below_30, items)) / 20_000 == pytest.approx(0.58, abs=0.015)
    path = "data.gym:running_totals_below_30"
    report = load_problems("gym:chain_sum", kwargs={**ONE_DIGIT, "size": 20_000}, filter_path=path).report
    assert report.share_kept_by_filter == pytest.approx(0.565, abs=0.015)
    assert f"kept {report.share_kept_by_filter:.1%}" in str(report)


def stays_below_30(item: dict) -> bool:
    """The slow twin: Python's own arithmetic on every prefix of the expression."""
    tokens = item["metadata"]["expression"].split()
    return all(0 <= eval(" ".join(tokens[:end])) <= 29 for end in range(1, len(tokens) + 1, 2))


def test_filter_agrees_with_python_on_every_problem():
    for settings in (ONE_DIGIT, {"max_digits": 2, "allow_negation": True}, {"min_terms": 1, "max_terms": 2}):
        for problem in load_gym("chain_sum", size=500, seed=2, **settings).problems:
            assert running_totals_below_30(problem) == stays_below_30(problem.columns["gym_entry"])


def test_entries_survive_a_file():
    problem = load_gym("chain_sum", size=20, seed=1).problems[0]
    entry = problem.columns["gym_entry"]
    assert json.loads(json.dumps(entry)) == entry
    assert entry["task"] == problem.task == "chain_sum"
    assert problem.columns["answer"] == problem.answer


def test_scores_are_the_tasks_own():
    entry = next(p for p in load_gym("chain_sum", size=200, seed=1).problems if p.answer.startswith("-")).columns[
        "gym_entry"
    ]
    gold = entry["answer"]
    assert gym_score(entry, gold) == gym_score(entry, f"{gold}.0") == 1.0
    assert gym_score(entry, "") == gym_score(entry, "no idea") == 0.0
    partial = gym_score(entry, f"1{gold}")  # the trap that the gym reward must not pay for
    assert partial == pytest.approx(len(gold) / (len(gold) + 1))


def test_settings_reach_the_scorer():
    """decimal_arithmetic's tolerance is one of its settings: a scorer with the defaults (3 to 3 places) is stricter."""
    settings = {"min_num_decimal_places": 1, "max_num_decimal_places": 1}
    entry = load_gym("decimal_arithmetic", size=5, seed=1, **settings).problems[0].columns["gym_entry"]
    near = str(float(entry["answer"]) + 0.05)
    assert gym_score(entry, near) == 1.0
    assert gym_score({**entry, "settings": {}}, near) == 0.0


def test_an_answer_the_scorer_chokes_on_scores_zero():
    entry = load_gym("prime_factorization", size=5, seed=1).problems[0].columns["gym_entry"]
    scorer = reasoning_gym.create_dataset("prime_factorization", size=1, seed=0).score_answer
    with pytest.raises(ValueError):
        scorer("two times three", entry)
    assert gym_score(entry, "two times three") == 0.0


@pytest.mark.parametrize("task", sorted(REFUSED_TASKS))
def test_refused_tasks_say_why(task):
    with pytest.raises(DataError, match=f"gym:{task} cannot be trained on: its |gym:{task} cannot be trained on: it "):
        load_gym(task)
    with pytest.raises(DataError, match="cannot be trained on"):  # nor through rows that claim to come from such a task
        gym_score({"task": task, "settings": {}, "answer": "1", "metadata": {}}, "1")


@pytest.mark.parametrize("task", sorted(OWN_SCORER_TASKS))
def test_a_scorer_that_failed_the_review_is_never_called(task):
    with pytest.raises(DataError, match=f"gym:{task} is scored by rewards.gym_scorers"):
        gym_score({"task": task, "settings": {}, "answer": "1", "metadata": {}}, "1")


def test_golds_that_the_package_keeps_elsewhere():
    problem = load_gym("graph_color", size=3, seed=1).problems[0]
    assert json.loads(problem.answer) == problem.columns["gym_entry"]["metadata"]["possible_answer"]


def test_settings_that_do_not_fit_a_task_that_is_generated_elsewhere():
    with pytest.raises(DataError, match="dataset_kwargs"):
        load_gym("ransom_note", min_letters=3)


def test_a_misspelt_task_names_the_nearest():
    with pytest.raises(DataError, match="chain_sum"):
        load_gym("chainsum")
    with pytest.raises(DataError, match=r"reviewed tasks: .*gcd"):
        load_gym("zzzzz")


@pytest.mark.parametrize("settings", [{"min_term": 3}, {"min_terms": 9, "max_terms": 3}, {"size": 0}])
def test_settings_the_task_does_not_take(settings):
    with pytest.raises(DataError, match="dataset_kwargs"):
        load_gym("chain_sum", **settings)


def test_only_two_splits():
    with pytest.raises(DataError, match="train and test"):
        load_gym("chain_sum", split="validation")


def in_either_order(item: dict) -> str:
    return str(sorted(item["metadata"]["numbers"]))


def test_problems_that_are_the_same_in_other_words_fall_on_one_side_where_split_by_says_which():
    pairs = {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 20, "size": 2000, "seed": 1}

    def sides(**kwargs) -> tuple[set[str], set[str]]:
        train, test = (load_gym("gcd", split=split, **pairs, **kwargs).problems for split in ("train", "test"))
        return tuple({in_either_order(problem.columns["gym_entry"]) for problem in side} for side in (train, test))

    train, test = sides()
    assert len(train & test) > 20  # 12 and 18, 18 and 12
    train, test = sides(split_by=f"{__name__}:in_either_order")
    assert train and test and not train & test


def test_a_split_by_that_names_nothing_is_told():
    with pytest.raises(DataError, match=r"split_by 'recipes.nowhere:at_all' is not package.module:function"):
        load_gym("gcd", size=5, split_by="recipes.nowhere:at_all")
