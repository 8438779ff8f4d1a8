"""The pipeline's tables by hand: what a column pools, what is paired, and when a claim holds."""

from __future__ import annotations

import re
from dataclasses import replace
from statistics import fmean

import pytest

from grpo.errors import ConfigError
from grpo.monitor.samples import Result
from recipes.chaining.chain import Stage
from recipes.chaining.pipeline_page import fooled, unpaid
from recipes.chaining.tables import Claim, Column, every_column, figures, judged

COLUMNS = {
    "accuracy": Column(figure="pass@1", benchmarks=["sums", "gcd"]),
    "sums": Column(figure="pass@1", benchmarks=["sums"]),
    "taste": Column(figure="reward/taste", benchmarks=["requests"]),
}


def results(benchmark: str, rights: list[int], **scores: float) -> list[Result]:
    """Problems of four samples of which so many are right."""
    return [
        Result(
            benchmark=benchmark,
            problem=number,
            problem_id=str(number),
            correct=[sample < right for sample in range(4)],
            consensus=right > 2,
            mean_length=8.0,
            clipped_ratio=0.0,
            format_rate=1.0,
            scores=dict(scores),
        )
        for number, right in enumerate(rights)
    ]


WEAK = [
    {"sums": results("sums", [1, 0, 2]), "gcd": results("gcd", [0, 1])},
    {"sums": results("sums", [1, 2, 2]), "gcd": results("gcd", [0, 3])},
]
STRONG = [
    {"sums": results("sums", [3, 2, 4]), "gcd": results("gcd", [2, 4]), "requests": results("requests", [0], taste=0.5)}
    for _ in range(2)
]


def test_a_column_pools_the_problems_of_its_benchmarks() -> None:
    found = figures(WEAK, COLUMNS)
    assert found["accuracy"]["per_seed"] == [fmean([0.25, 0, 0.5, 0, 0.25]), fmean([0.25, 0.5, 0.5, 0, 0.75])]
    assert found["accuracy"]["mean"] == pytest.approx(fmean(found["accuracy"]["per_seed"]), abs=1e-12)
    assert found["sums"]["mean"] == pytest.approx((0.25 + 0.25 + 0.5) / 3, abs=1e-12)
    assert found["accuracy"]["low"] < found["accuracy"]["mean"] < found["accuracy"]["high"]


def test_a_column_that_a_model_was_not_asked_for_is_left_out() -> None:
    assert list(figures(WEAK, COLUMNS)) == ["accuracy", "sums"]
    assert figures(STRONG, COLUMNS)["taste"]["mean"] == 0.5


def test_without_a_choice_every_figure_of_every_benchmark_is_a_column() -> None:
    assert {"sums pass@1", "gcd cons@4", "requests reward/taste"} <= every_column(STRONG).keys()


@pytest.mark.parametrize(
    ("claim", "difference", "holds"),
    [
        (Claim(better="strong", worse="weak", column="accuracy"), 0.75 - 0.3, True),
        (Claim(better="weak", worse="strong", column="accuracy"), 0.3 - 0.75, False),
        (Claim(better="strong", worse="weak", column="accuracy", margin=0.45), 0.75 - 0.3, False),
        (Claim(better="strong", worse="strong", column="accuracy"), 0.0, False),
        (Claim(better="strong", worse="strong", column="accuracy", margin=-0.01), 0.0, True),
        (Claim(better="strong", column="taste", margin=0.4), 0.5, True),
        (Claim(better="strong", column="taste", margin=0.6), 0.5, False),
    ],
)
def test_a_claim_holds_when_the_whole_interval_lies_above_its_margin(
    claim: Claim, difference: float, holds: bool
) -> None:
    found = judged(claim, {"weak": WEAK, "strong": STRONG}, COLUMNS)
    assert found["difference"]["mean"] == pytest.approx(difference, abs=1e-12)
    assert found["holds"] is holds


def test_the_difference_is_paired() -> None:
    """Problems differ by far more than the models do, and still the interval is narrow."""
    by_one = [{"sums": results("sums", [0, 1, 2, 3])}], [{"sums": results("sums", [1, 2, 3, 4])}]
    found = judged(Claim(better="b", worse="a", column="sums"), dict(zip(("a", "b"), by_one, strict=True)), COLUMNS)
    assert found["difference"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "per_seed": [0.25]}


def test_a_claim_must_hold_in_every_seed() -> None:
    weak = [{"sums": results("sums", [1] * 40)}, {"sums": results("sums", [1] * 40)}]
    strong = [{"sums": results("sums", [4] * 40)}, {"sums": results("sums", [0] * 40)}]
    claim = Claim(better="strong", worse="weak", column="sums")
    found = judged(claim, {"weak": weak, "strong": strong}, COLUMNS)
    assert found["difference"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "per_seed": [0.75, -0.25]}
    assert not found["holds"]


def test_problems_are_paired_by_what_they_are_not_by_their_place() -> None:
    same = {"sums": results("sums", [1, 2, 3])}
    turned = {"sums": same["sums"][::-1]}
    claim = Claim(better="b", worse="a", column="sums")
    assert judged(claim, {"a": [same], "b": [turned]}, COLUMNS)["difference"]["high"] == 0
    others = {"sums": [replace(result, problem_id=f"another {result.problem_id}") for result in same["sums"]]}
    with pytest.raises(ConfigError, match="b and a were not asked the same problems in sums"):
        judged(claim, {"a": [same], "b": [others]}, COLUMNS)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (Claim(better="stronk", column="sums"), "no row 'stronk'; there are weak, strong"),
        (Claim(better="strong", column="summs"), "no column 'summs'"),
        (Claim(better="strong", worse="weak", column="taste"), "the evaluation of weak has no taste"),
    ],
)
def test_a_claim_about_nothing_is_told(claim: Claim, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        judged(claim, {"weak": WEAK, "strong": STRONG}, COLUMNS)


def test_the_page_draws_what_is_not_paid_against_what_is() -> None:
    """A paid reward that rises to the end, and a true one that turns down on the way."""
    rewards = ["accuracy", {"name": "model"}, {"name": "tests.rewards:truth", "weight": 0}]
    stage = Stage(name="push", recipe="all_scenarios_rl", keys={"reward_funcs": rewards, "max_steps": 100})
    assert unpaid(stage) == ["truth"]
    assert unpaid(Stage(name="rows", recipe="rejection_sampling", keys={"reward_funcs": rewards})) == []
    lines = [{"step": s, "reward": s / 10, "rewards/truth/mean": 1 - abs(s - 40) / 60} for s in range(100)]
    drawn = fooled(stage, "truth", lines)
    places = re.search(r'<polyline points="([^"]*)"', drawn)[1].split()
    xs, ys = zip(*(map(float, place.split(",")) for place in places), strict=True)
    assert list(xs) == sorted(xs)
    assert 0.3 < ys.index(min(ys)) / len(ys) < 0.5  # on a page up is less
    assert fooled(stage, "truth", [{"step": 0, "reward": 0.0}]) == ""
