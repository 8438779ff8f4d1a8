import json
import math
import os
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problem import DataError, Problem
from data.rows import RowError, canonical_answer, normalised
from data.sources import load_problems
from rewards import Rubric

SHARED = Path(os.environ.get("R1_SHARED_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is absent")

GOOD = {"prompt": "1 + 1?", "answer": "2"}


def write(path: Path, *lines: str | dict | bytes) -> str:
    encoded = [json.dumps(line).encode() if isinstance(line, dict) else line for line in lines]
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in encoded) + b"\n")
    return str(path)


def is_long(problem: Problem) -> bool:
    return len(problem.question) > 10


NOT_A_FILTER = 3


# --- what a good row becomes


def test_columns_and_prompt(tmp_path):
    path = write(tmp_path / "rows.jsonl", {**GOOD, "level": 3, "solution": "two"})
    loaded = load_problems(path, template="chat", system_prompt="Be brief.")
    (problem,) = loaded.problems
    assert (problem.id, problem.question, problem.answer, problem.source) == ("rows.jsonl:1", "1 + 1?", "2", path)
    assert problem.columns == {"answer": "2", "level": 3, "solution": "two"}
    system = {"role": "system", "content": "Be brief."}
    assert problem.prompt == [system, {"role": "user", "content": "1 + 1?"}]
    assert (loaded.report.rows_read, loaded.report.kept, loaded.report.bad_rows) == (1, 1, ())


def test_other_column_names(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"problem": "1 + 1?", "Answer": 2.0, "prompt": "unused"})
    (problem,) = load_problems(path, prompt_column="problem", answer_column="Answer", template="plain").problems
    assert (problem.prompt, problem.answer) == ("1 + 1?", "2")
    assert problem.columns == {"Answer": 2.0, "prompt": "unused", "answer": "2"}


def test_the_named_answer_column_is_what_accuracy_judges(tmp_path):
    row = {"prompt": "2 + 3?", "answer": "7, said somebody", "final": 5}
    (problem,) = load_problems(write(tmp_path / "rows.jsonl", row), answer_column="final", template="plain").problems
    scored = Rubric.from_config(["accuracy"]).score(
        prompts=[problem.prompt] * 2,
        completions=["<answer>5</answer>", "<answer>7</answer>"],
        completion_ids=[[1], [1]],
        columns={name: [value] * 2 for name, value in problem.columns.items()},
        trainer_state=None,
        step=0,
    )
    assert scored.rewards == [1.0, 0.0]


def test_chat_prompts_are_used_as_they_are(tmp_path):
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "1 + 1?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = write(tmp_path / "rows.jsonl", {"prompt": [{**m, "name": None} for m in messages], "answer": "2"})
    (problem,) = load_problems(path, template="r1_zero").problems
    assert problem.prompt == messages
    assert problem.question == "1 + 1?"


def test_the_three_file_types_and_a_folder_give_the_same_problems(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"prompt": f"{n} + 1?", "answer": str(n + 1), "level": n} for n in range(5)]
    (tmp_path / "lines").mkdir()
    (tmp_path / "tables").mkdir()
    sources = [
        write(tmp_path / "lines" / "train.jsonl", *rows),
        write(tmp_path / "rows.json", json.dumps(rows, indent=1)),
        write(tmp_path / "lines.json", *rows),
        str(tmp_path / "tables" / "train.parquet"),
        str(tmp_path / "lines"),  # folders go through datasets.load_dataset, as a Hub id does
        str(tmp_path / "tables"),
    ]
    pq.write_table(pa.Table.from_pylist(rows), sources[3])
    expected = [(row["prompt"], row["answer"], {"answer": row["answer"], "level": row["level"]}) for row in rows]
    for source in sources:
        problems = load_problems(source).problems
        assert [(p.question, p.answer, dict(p.columns)) for p in problems] == expected, source
        assert len({p.id for p in problems}) == 5


def test_splits_of_a_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", GOOD)
    write(folder / "test.jsonl", {"prompt": "2 + 2?", "answer": "4"}, {"prompt": " ", "answer": "4"})
    assert [p.answer for p in load_problems(str(folder), split="train").problems] == ["2"]
    with pytest.raises(DataError, match="blank prompt: row 2"):
        load_problems(str(folder), split="test")
    assert [p.answer for p in load_problems(str(folder), split="test", allow_bad_rows=True).problems] == ["4"]


def test_a_file_has_no_test_split_unless_its_name_says_so(tmp_path):
    path = write(tmp_path / "set_train.jsonl", GOOD)
    write(tmp_path / "set_test.jsonl", {"prompt": "2 + 2?", "answer": "4"})
    with pytest.raises(DataError, match=r"no split 'test'.*\{split\}"):
        load_problems(path, split="test")
    pattern = str(tmp_path / "set_{split}.jsonl")
    assert [load_problems(pattern, split=s).problems[0].answer for s in ("train", "test")] == ["2", "4"]


# --- what cannot be loaded at all


@pytest.mark.parametrize("name", ["no/such.jsonl", "no/such.parquet", "gsm8k:no/such.json"])
def test_a_missing_file(name):
    with pytest.raises(DataError, match=r"no file .*correct dataset_name"):
        load_problems(name)


def test_an_unknown_hub_id_says_what_a_name_may_be(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"could not be loaded.*gym:<task>"):
        load_problems("nobody/no-such-dataset")


def test_settings_belong_to_gym_tasks(tmp_path):
    with pytest.raises(DataError, match="dataset_kwargs"):
        load_problems(write(tmp_path / "rows.jsonl", GOOD), kwargs={"size": 3})


@pytest.mark.parametrize("content", ["[", '[{"prompt": "1?", "answer": "1"},]'])
def test_a_json_list_that_cannot_be_parsed(tmp_path, content):
    with pytest.raises(DataError, match="malformed JSON"):
        load_problems(write(tmp_path / "rows.json", content))


def test_an_empty_file(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(DataError, match="no problem is left"):
        load_problems(str(tmp_path / "rows.jsonl"))


# --- bad rows


BAD_LINES = [
    ({"answer": "2"}, "no value in column 'prompt'"),
    ({"prompt": None, "answer": "2"}, "no value in column 'prompt'"),
    ({"prompt": "", "answer": "2"}, "blank prompt"),
    ({"prompt": " \n", "answer": "2"}, "blank prompt"),
    ({"prompt": 7, "answer": "2"}, "prompt is a int"),
    ({"prompt": "1?"}, "no value in column 'answer'"),
    ({"prompt": "1?", "answer": None}, "no value in column 'answer'"),
    ({"prompt": "1?", "answer": " "}, "blank answer"),
    ({"prompt": "1?", "answer": ["2"]}, "answer is a list"),
    ({"prompt": "1?", "answer": True}, "answer is a bool"),
    ('{"prompt": "1?", "answer": NaN}', "NaN or Infinity"),
    ('{"prompt": "1?", "answer": "1", "x": {"y": [-Infinity]}}', "NaN or Infinity"),
    ('{"prompt": "1?", "answer": 1e999}', "too large"),
    ('{"prompt": "1?", "answer": ' + "9" * 5000 + "}", "malformed JSON"),
    ('{"prompt": "1?", "answer": "1", "answer": "2"}', "a JSON key appears twice"),
    ('{"prompt": "1?", "answer": "1", "x": {"y": 1, "y": 1}}', "a JSON key appears twice"),
    ('{"prompt": "1?", "answer": "1",}', "malformed JSON"),
    ('{"prompt": "1?", "ans', "malformed JSON"),
    ("[" * 100_000, "malformed JSON"),
    ("", "blank line"),
    ('["1?", "1"]', "not a JSON object"),
    ("17", "not a JSON object"),
    (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "malformed JSON"),
    (b'{"prompt": "\xff", "answer": "1"}', "not UTF-8"),
    ({"prompt": "1?\ud800", "answer": "1"}, "lone surrogate"),
    ({"prompt": "1?", "answer": "1\0"}, "NUL"),
    ({"prompt": "1?", "answer": "1", "x": [{"\udfff": 1}]}, "lone surrogate"),
    ({"prompt": [], "answer": "1"}, "roles are not"),
    ({"prompt": [{"role": "user"}], "answer": "1"}, "not {role, content}"),
    ({"prompt": ["1?"], "answer": "1"}, "not {role, content}"),
    ({"prompt": [{"role": "user", "content": " "}], "answer": "1"}, "a message is blank"),
]
BAD_ROLES = [["system"], ["assistant"], ["human"], ["user", "user"], ["user", "assistant"], ["user", "system", "user"]]
BAD_LINES += [
    ({"prompt": [{"role": role, "content": "1?"} for role in roles], "answer": "1"}, "roles are not")
    for roles in BAD_ROLES
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_row_is_named_and_its_neighbours_kept(tmp_path, line, reason):
    path = write(tmp_path / "rows.jsonl", GOOD, line, {"prompt": "2 + 2?", "answer": "4"})
    with pytest.raises(DataError, match="line 2") as error:
        load_problems(path)
    assert reason in str(error.value) and "1 of 3 rows" in str(error.value)
    assert "allow_bad_rows: true" in str(error.value)
    loaded = load_problems(path, allow_bad_rows=True)
    assert [problem.answer for problem in loaded.problems] == ["2", "4"]
    assert [bad.place for bad in loaded.report.bad_rows] == ["line 2"]
    assert reason in str(loaded.report)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parquet_numbers_that_are_none(tmp_path, value):
    rows = [{"prompt": f"{n}?", "answer": answer} for n, answer in enumerate([1.0, value, 2.5, None])]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    loaded = load_problems(str(tmp_path / "rows.parquet"), allow_bad_rows=True)
    assert [problem.answer for problem in loaded.problems] == ["1", "2.5"]
    assert [bad.place for bad in loaded.report.bad_rows] == ["row 2", "row 4"]


def test_reasons_are_counted_and_only_a_few_places_shown(tmp_path):
    lines = [{"prompt": f"{n}?", "answer": "" if n % 2 else n} for n in range(40)]
    with pytest.raises(DataError) as error:
        load_problems(write(tmp_path / "rows.jsonl", *lines, "{", GOOD))
    message = str(error.value)
    assert "21 of 42 rows" in message
    assert "20  blank answer: line 2, line 4, line 6, line 8, line 10, ..." in message
    assert "1  malformed JSON: line 41\n" in message


def test_nothing_but_bad_rows_is_an_error_even_when_they_are_allowed(tmp_path):
    with pytest.raises(DataError, match=r"no problem is left(.|\n)*blank answer: line 1"):
        load_problems(write(tmp_path / "rows.jsonl", {"prompt": "1?", "answer": ""}), allow_bad_rows=True)


def test_repeated_rows_stay_and_contradicting_rows_go(tmp_path):
    rows = [GOOD, {**GOOD, "answer": 2}, {"prompt": "x?", "answer": "1"}, {"prompt": "x?", "answer": "3"}]
    path = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(DataError, match="another answer: line 3, line 4"):
        load_problems(path)
    problems = load_problems(path, allow_bad_rows=True).problems
    assert [(p.id, p.answer) for p in problems] == [("rows.jsonl:1", "2"), ("rows.jsonl:2", "2")]


@given(lines=st.lists(st.binary(max_size=60) | st.just(json.dumps(GOOD).encode())))
def test_any_bytes_give_problems_or_a_data_error(lines, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        loaded = load_problems(str(path), allow_bad_rows=True)
    except DataError:
        assert json.dumps(GOOD).encode() not in lines
    else:
        report = loaded.report
        assert report.kept == len(loaded.problems) == report.rows_read - len(report.bad_rows)
        assert report.rows_read == path.read_bytes().rstrip(b"\n").count(b"\n") + 1 or path.read_bytes().endswith(b"\n")


# --- filters


def test_a_filter_is_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", GOOD, {"prompt": "What is 2 + 2?", "answer": "4"})
    loaded = load_problems(path, filter_path=f"{__name__}:is_long")
    assert [problem.answer for problem in loaded.problems] == ["4"]
    assert (loaded.report.kept, loaded.report.filtered) == (1, 1)
    assert "kept 50.0%, removed 1" in str(loaded.report)


@pytest.mark.parametrize(
    "path", ["is_long", "no.such.module:f", f"{__name__}:no_such", "", ":", f"{__name__}:NOT_A_FILTER"]
)
def test_a_filter_that_is_not_there(tmp_path, path):
    with pytest.raises(DataError, match=r"package\.module:function"):
        load_problems(write(tmp_path / "rows.jsonl", GOOD), filter_path=path)


def test_a_filter_that_keeps_nothing(tmp_path):
    with pytest.raises(DataError, match=r"no problem is left(.|\n)*kept 0.0%"):
        load_problems(write(tmp_path / "rows.jsonl", GOOD), filter_path=f"{__name__}:is_long")


# --- answers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (145.0, "145"),
        (-0.5, "-0.5"),
        (7, "7"),
        (-0.0, "0"),
        (1e-7, "0.0000001"),
        (1e22, "10000000000000000000000"),
        (10**30, "1" + "0" * 30),
        (Decimal("2.50"), "2.5"),
        (Decimal("0.1234567890123456789012345678901234567"), "0.1234567890123456789012345678901234567"),
        (" 3/4\n", "3/4"),
        ("007", "007"),
    ],
)
def test_canonical_answers(value, text):
    assert canonical_answer(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_numbers_text_means_the_same_number(value):
    text = canonical_answer(value)
    assert type(value)(text) == value
    assert "e" not in text.lower() and not text.endswith(".0")


@given(st.text(max_size=20))
def test_text_is_kept_but_for_the_space_around_it(text):
    if text.strip():
        assert canonical_answer(text) == text.strip()
    else:
        with pytest.raises(RowError, match="blank answer"):
            canonical_answer(text)


@given(st.text())
def test_normalising_twice_changes_nothing(question):
    once = normalised(question)
    assert normalised(f"  {once}\n") == once


# --- real data


@real_data
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_gsm8k(split, count):
    loaded = load_problems(f"gsm8k:{SHARED}/gsm8k_{{split}}.jsonl", split=split, template="r1_zero")
    assert len(loaded.problems) == count == loaded.report.rows_read
    lines = (SHARED / f"gsm8k_{split}.jsonl").read_text().splitlines()
    for problem, line in zip(loaded.problems, lines, strict=True):
        row = json.loads(line)
        assert problem.question == row["question"]
        assert problem.answer == row["answer"].split("#### ")[1].strip().replace(",", "") == problem.columns["answer"]
        assert int(problem.answer) == float(problem.answer)
        assert row["answer"].startswith(problem.columns["rationale"])
    assert loaded.problems[0].id == f"gsm8k_{split}.jsonl:1"
    assert loaded.problems[0].task == "gsm8k"


def test_gsm8k_rows_without_a_final_answer(tmp_path):
    rows = [{"question": "a?", "answer": "so\n#### 1,234"}, {"question": "b?", "answer": "7"}]
    rows += [{"question": "c?", "answer": "so #### "}, {"question": "d?", "answer": None}]
    path = write(tmp_path / "g.jsonl", *rows)
    loaded = load_problems(f"gsm8k:{path}", allow_bad_rows=True)
    assert [problem.answer for problem in loaded.problems] == ["1234"]
    assert [bad.place for bad in loaded.report.bad_rows] == ["line 2", "line 3", "line 4"]


@real_data
def test_svamp_has_float_answers_and_questions_that_need_their_body():
    name = str(SHARED / "svamp_test.jsonl")
    loaded = load_problems(name, prompt_column="Question", answer_column="Answer", allow_bad_rows=True)
    assert loaded.report.rows_read == 1000
    assert all("." not in problem.answer for problem in loaded.problems)
    reasons = {bad.reason for bad in loaded.report.bad_rows}
    assert reasons == {"same prompt as another row, with another answer"}
    rows = [json.loads(line) for line in Path(name).read_text().splitlines()]
    answers = {q: {row["Answer"] for row in rows if row["Question"] == q} for q in {row["Question"] for row in rows}}
    assert len(loaded.problems) == sum(len(answers[row["Question"]]) == 1 for row in rows)


@real_data
def test_math_rows_without_gold_are_reported_by_number():
    name = str(SHARED / "math_train_7474.json")
    with pytest.raises(DataError, match="4 of 7474 rows") as error:
        load_problems(name, prompt_column="problem")
    without_gold = [
        n for n, row in enumerate(json.loads(Path(name).read_text()), 1) if not (row["answer"] or "").strip()
    ]
    assert len(without_gold) == 4
    assert all(f"row {number}" in str(error.value) for number in without_gold)
    assert len(load_problems(name, prompt_column="problem", allow_bad_rows=True).problems) == 7470


@real_data
def test_math500():
    loaded = load_problems(str(SHARED / "math500_test.jsonl"), prompt_column="problem")
    assert loaded.report.kept == 500
    assert {"solution", "answer"} <= loaded.problems[0].columns.keys()


def test_a_row_that_the_caller_refuses_is_a_bad_row_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, {"prompt": "1 / 0?", "answer": "1/0"})
    rubric = Rubric.from_config(["format", "accuracy"])

    def refuse(problem: Problem) -> str | None:
        return rubric.gold_problem(problem.columns)

    with pytest.raises(DataError, match=r"accuracy cannot use the gold answer: it has no value.*line 2"):
        load_problems(path, refuse=refuse)
    assert len(load_problems(path, refuse=refuse, allow_bad_rows=True).problems) == 1
    assert len(load_problems(path).problems) == 2
