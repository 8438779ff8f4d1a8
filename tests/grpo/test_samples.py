"""Stored samples of evaluations and the figures made of them, by hand; and the pictures of the page."""

import re
from math import comb

import pytest

from grpo.errors import ConfigError
from grpo.monitor.charts import BINS, histogram, whiskers
from grpo.monitor.completions import read_completions
from grpo.monitor.samples import (
    CUT,
    Result,
    SampleStore,
    Tally,
    answer_of,
    figure,
    figures,
    headline,
    read_results,
    result_of,
    write_results,
)


def row(number: int = 0, sibling: int = 0, *, benchmark: str = "sums", **changes: object) -> dict:
    return {
        "benchmark": benchmark,
        "problem": number,
        "problem_id": f"p{number}",
        "task": "sums",
        "question": "1 + 1?",
        "answer": "2",
        "sibling": sibling,
        "prompt": "1 + 1?",
        "completion": "<think>hm</think> <answer>2</answer>",
        "stop_reason": "eos",
        "length": 10,
        "reward": 1.0,
        "correct": True,
        "think_opened": False,
        "reward/accuracy": 1.0,
        "verdict/accuracy": "correct",
        **changes,
    }


def test_a_store_goes_on_where_the_last_one_stopped(tmp_path):
    store = SampleStore(tmp_path)
    store.write([row(0, 0), row(0, 1), row(2)])
    store.write([row(1, benchmark="other", completion="\ud800\x1b[2J")])
    again = SampleStore(tmp_path)
    assert dict(again.done) == {"sums": {0, 2}, "other": {1}} and again.next == 2
    again.write([row(1)])
    assert [[r["problem"] for r in rows] for rows in again.problems()] == [[0, 0], [2], [1], [1]]
    assert [r["step"] for r in read_completions(tmp_path)] == [0, 0, 0, 1, 2]


def test_figures_by_hand():
    """Three problems of four samples: 4, 1 and 0 right."""
    tally = Tally(votes=True)
    for number, right in enumerate((4, 1, 0)):
        tally.add(
            [
                row(number, s, correct=s < right, completion=f"<answer>{2 if s < right else 3}</answer>", length=s)
                | {"reward/accuracy": float(s < right), "stop_reason": "length" if s == 3 else "eos"}
                for s in range(4)
            ]
        )
    means = {name: interval.mean for name, interval in figures(tally.results).items()}
    assert means == pytest.approx(
        {
            "pass@1": 5 / 12,
            "pass@2": (1 + (1 - comb(3, 2) / comb(4, 2))) / 3,
            "pass@4": 2 / 3,
            "cons@4": 1 / 3,
            "format_rate": 0.0,
            "mean_length": 1.5,
            "clipped_ratio": 0.25,
            "reward/accuracy": 5 / 12,
        }
    )
    summary = tally.summary()
    assert (summary["problems"], summary["samples"], summary["unjudged"]) == (3, 4, 0)
    assert summary["verdicts"] == {"accuracy/correct": 12} and sorted(tally.lengths[True]) == [0, 0, 1, 2, 3]


def test_an_odd_number_of_samples_has_its_own_pass_at_k():
    results = [result_of([row(0, s, correct=s == 0) for s in range(6)], votes=True)]
    assert [name for name in figures(results) if name.startswith("pass")] == ["pass@1", "pass@2", "pass@4", "pass@6"]


@pytest.mark.parametrize("name", ["pass@8", "pass@0", "pass@", "pass@one", "cons@8", "cons@2", "formt_rate", "problem"])
def test_a_figure_that_the_samples_cannot_have_is_told(name):
    result = result_of([row(0, s, correct=s == 0) for s in range(4)], votes=True)
    with pytest.raises(
        ConfigError, match=f"no figure '{name}' where a problem has 4 samples; there are pass@1, cons@4"
    ):
        figure(result, name)


def test_one_sample_has_no_majority_and_a_reward_is_called_as_one_likes():
    result = result_of([row(0) | {"reward/a@b/c": 0.5}], votes=True)
    assert figure(result, "reward/a@b/c") == 0.5 and figure(result, "reward/d") is None
    assert "cons@1" not in headline(result) and "pass@1" in headline(result)
    with pytest.raises(ConfigError, match="cons@1"):
        figure(result, "cons@1")


def test_what_nobody_measured_is_no_figure():
    results = [result_of([row(0, s, correct=None, length=None, stop_reason=None) for s in range(2)], votes=True)]
    assert set(figures(results)) == {"format_rate", "reward/accuracy"}
    unscored = result_of([row(0, 0) | {"reward/accuracy": None}], votes=False)
    assert "reward/accuracy" not in figures([unscored]) and "cons@1" not in figures([unscored])


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, "2"),
        ({"extra/accuracy/answer": "1+1"}, "1+1"),  # as the reward read it
        ({"extra/format/answer": None, "extra/choice/answer": "B"}, "B"),
        ({"extra/accuracy/answer": None}, "2"),  # refused for its form: a vote all the same
        ({"extra/accuracy/answer": "9" * CUT}, "2"),  # cut short
        ({"completion": "no idea"}, None),
        ({"completion": "the answer is 5", "think_opened": True}, None),  # said while thinking
    ],
)
def test_the_answer_that_votes(changes, answer):
    assert answer_of(row(**changes)) == answer


def test_results_come_back_by_benchmark_and_in_order(tmp_path):
    results = [result_of([row(n, benchmark=name)], votes=True) for name, n in (("b", 1), ("a", 0), ("b", 0))]
    write_results(tmp_path, results)
    found = read_results(tmp_path)
    assert [result.problem for result in found["b"]] == [0, 1] and found["a"] == [results[1]]
    assert all(isinstance(result, Result) for result in found["b"])


def test_a_histogram_shows_every_number_once():
    right, others = [1, 1, 1, 30, 60], [60, 60, 59]
    drawn = re.findall(r'height="([\d.]+)" fill="var\(--(good|bad)\)"', histogram("lengths", right, others))
    unit = 186 / 4  # four numbers in the fullest range, over the whole height
    assert sum(float(height) for height, kind in drawn if kind == "good") == pytest.approx(unit * 5, abs=1)
    assert sum(float(height) for height, kind in drawn if kind == "bad") == pytest.approx(unit * 3, abs=1)
    assert "<rect" in histogram("all alike", [7] * 5, []) and BINS == 30


def test_whiskers_lie_where_their_numbers_are():
    drawn = whiskers("accuracy", {"a <b>": (0.0, 0.5, 1.0)})
    left, right = map(float, re.search(r"M([\d.]+) 14H([\d.]+)\" stroke=\"#", drawn).groups())
    centre = float(re.search(r'circle cx="([\d.]+)"', drawn)[1])
    assert (left, right) == (150, 402) and centre == pytest.approx((left + right) / 2)
    assert "a &lt;b&gt;" in drawn
