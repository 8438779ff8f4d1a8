from dataclasses import replace
from datetime import date

import pytest

from data.fingerprint import fingerprint
from data.problem import Problem

ONE = Problem(id="a", question="1 + 1?", answer="2", prompt="1 + 1?", columns={"level": 1, "tags": ["x"]})
TWO = Problem(id="b", question="2 + 2?", answer="4", prompt=[{"role": "user", "content": "2 + 2?"}])


@pytest.mark.parametrize(
    "change",
    [
        {"id": "c"},
        {"question": "1 + 1 ?"},
        {"answer": "3"},
        {"prompt": [{"role": "user", "content": "1 + 1?"}]},
        {"task": "other"},
        {"source": "elsewhere"},
        {"columns": {"level": 2, "tags": ["x"]}},
    ],
)
def test_every_field_counts(change):
    assert fingerprint([ONE, TWO]) != fingerprint([replace(ONE, **change), TWO])


def test_order_and_number_count():
    assert len({fingerprint(rows) for rows in ([], [ONE], [TWO], [ONE, TWO], [TWO, ONE], [ONE, ONE])}) == 6


def test_same_content_gives_the_same_hash():
    again = replace(ONE, columns={"tags": ["x"], "level": 1})
    assert fingerprint([ONE]) == fingerprint([again])
    assert len(fingerprint(iter([ONE]))) == 64


def test_values_outside_json_enter_as_text():
    first, second = (replace(ONE, columns={"day": date(2025, 1, day)}) for day in (1, 2))
    assert fingerprint([first]) != fingerprint([second])
