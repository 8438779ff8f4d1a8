"""The making of a cold start: rewritten by a real server that errs, and traces of every form judged again."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.conversations import ShardWriter
from recipes import make_cold_start
from recipes.rows.make_rows import identity_of
from recipes.rows.rewrite import PROMPT
from tests.http_server import Server
from tests.recipes.rows_process import killed_at, report_of, rows_of, words


def make(*given: str) -> int:
    return make_cold_start.main(list(given))


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def plain(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shortest right sample of each problem, not rewritten."""
    folder = tmp_path_factory.mktemp("plain") / "rows"
    assert make(*words(tiny_base, folder, choose="shortest", max_per_problem=1)) == 0
    return folder


def test_one_readable_row_for_each_problem_that_was_solved(plain: Path) -> None:
    rows, counts = rows_of(plain), report_of(plain)["total"]
    assert len(rows) == len({row.prompt for row in rows}) > 10
    assert counts["rows"] + counts["dropped"].get("repetition_penalty below -0.2", 0) >= counts["solved"]
    assert {row.lineage["stage"] for row in rows} == {"make_cold_start"}


def helper(handler: Any, request: dict[str, Any]) -> None:
    """Rewrites, each kind of fault for some of the answers: by the last digit of the right one."""
    shown = request["messages"][-1]["content"]
    found = re.findall(r"<answer>(\d+)</answer>", shown)
    last = found[-1][-1] if found else "9"
    good = f"<think>first I add, then I check it</think> <answer>{found[-1] if found else ''}</answer>"
    said = {
        "0": (good.replace("</answer>", "1</answer>"), "stop"),  # another answer
        "1": (good, "length"),  # cut off
        "2": (good.replace("<answer>", ""), "stop"),  # without an answer
        "3": (f"<think>How would one write this?</think>{good}", "stop"),  # with its own thoughts before it
        "4": ("  ", "stop"),
    }.get(last, (good, "stop"))
    handler.say(said[0], model="helper", finish_reason=said[1])


def test_a_rewriting_is_judged_again(plain: Path, tiny_base: Path, server: Server, tmp_path: Path) -> None:
    server.answer(helper)
    given = {"rewrite_url": server.url, "rewrite_model": "helper", "choose": "shortest", "max_per_problem": 1}
    assert make(*words(tiny_base, tmp_path / "rows", **given)) == 0
    before = {row.id: row for row in rows_of(plain)}
    after = {row.id: row for row in rows_of(tmp_path / "rows")}
    digits = {id: row.columns["answer"][-1] for id, row in before.items()}
    assert after.keys() == {id for id, digit in digits.items() if digit in "356789"}
    for id, row in after.items():
        answer = before[id].columns["answer"]
        assert row.completion == f"<think>first I add, then I check it</think> <answer>{answer}</answer>"
        assert row.columns["sampled"] == before[id].completion and row.lineage["rewritten"] is True
        assert row.columns["pass_rate"] == before[id].columns["pass_rate"] and row.prompt == before[id].prompt
    dropped, faults = report_of(tmp_path / "rows")["total"]["dropped"], Counter(digits.values())
    assert dropped["rewritten: wrong"] == faults["0"] + faults["2"] > 0
    assert dropped["not rewritten: no answer, or cut off"] == faults["1"] + faults["4"] > 0
    asked = [request for request, _ in server.requests if request["max_tokens"] > 1]
    assert len(asked) == len(before) and {request["temperature"] for request in asked} == {0.6}
    first = next(iter(before.values()))
    assert any(first.completion in request["messages"][0]["content"] for request in asked)


@pytest.mark.slow
def test_a_kill_between_rewritings_changes_nothing(tiny_base: Path, server: Server, tmp_path: Path) -> None:
    server.answer(helper)
    given = {"rewrite_url": server.url, "rewrite_model": "helper"}
    assert make(*words(tiny_base, tmp_path / "whole", **given)) == 0
    cut = words(tiny_base, tmp_path / "cut", **given)
    assert killed_at(2, "make_cold_start", cut) == -signal.SIGKILL
    assert make(*cut, "--resume=auto") == 0
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert report_of(tmp_path / "cut") == report_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_helper_that_dies_ends_the_run_and_costs_no_row(tiny_base: Path, tmp_path: Path) -> None:
    given = {"rewrite_model": "helper", "choose": "shortest", "max_per_problem": 1, "problems_per_shard": 16}
    asked = 0

    def dies(handler: Any, request: dict[str, Any]) -> None:
        nonlocal asked
        asked += 1
        if asked > 15:
            return handler.send(b"gone", status=503)
        return helper(handler, request)

    for folder, answering, code in (("cut", dies, 2), ("cut", helper, 0), ("whole", helper, 0)):
        with Server() as running:
            running.answer(answering)
            assert make(*words(tiny_base, tmp_path / folder, rewrite_url=running.url, resume="auto", **given)) == code
    assert asked > 15 and rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert report_of(tmp_path / "cut") == report_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(
            {"rewrite_url": "http://127.0.0.1:1/v1", "rewrite_model": "x"},
            "does not answer for the model 'x'",
            marks=pytest.mark.slow,  # six seconds of further tries
        ),
        ({"rewrite_url": "http://127.0.0.1:1/v1", "rewrite_prompt": "absent.txt"}, "cannot read absent.txt"),
        ({"rewrite_url": "http://127.0.0.1:1/v1", "rewrite_prompt": "pyproject.toml"}, "has no {question} and no"),
    ],
)
def test_a_helper_that_cannot_help_is_refused_before_anything_is_sampled(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    assert make(*words(tiny_base, tmp_path / "rows", **change)) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "rows").exists()


def test_a_helper_that_refuses_is_refused(
    tiny_base: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer(lambda handler, request: handler.send(b"no such model", status=404))
    assert make(*words(tiny_base, tmp_path / "rows", rewrite_url=server.url, rewrite_model="x")) == 2
    assert "does not answer for the model 'x'" in capsys.readouterr().err and not (tmp_path / "rows").exists()


def test_another_server_may_go_on_with_the_rewriting_but_none_may_not(tmp_path: Path) -> None:
    nobody, one, other = (
        identity_of(make_cold_start.parse(words(tmp_path, tmp_path, rewrite_url=url)), "the problems")
        for url in (None, "http://a/v1", "http://b/v1")
    )
    assert one == other != nobody


def test_the_shipped_prompt_has_its_places() -> None:
    text = PROMPT.read_text()
    assert text.count("{question}") == text.count("{solution}") == 1


QUESTIONS = {"What is 2 + 3?": "5", "What is 2 * 4?": "8", "What is 9 - 2?": "7"}


def thought(answer: str) -> str:
    return f"<think>I work it out.</think> <answer>{answer}</answer>"


def rows_as(form: str) -> list[dict[str, Any]]:
    """A right and a wrong solution of each question."""
    pairs = [(question, answer, thought(said)) for question, answer in QUESTIONS.items() for said in (answer, "11")]
    if form == "open-r1":
        return [
            {"problem": q, "answer": a, "generations": [thought(a), thought("11"), "cut"], "uuid": q[-3],
             "is_reasoning_complete": [True, True, False], "correctness_math_verify": None}
            for q, a in QUESTIONS.items()
        ]  # fmt: skip
    if form == "messages":
        return [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": s}], "answer": a}
            for q, a, s in pairs
        ]
    return [{"prompt": q, "completion": s, "answer": a, "task": "sums"} for q, a, s in pairs]


def traces(tiny_base: Path, tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> int:
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "dataset_name": str(tmp_path / "traces.jsonl"), "dataset_kwargs": {}, "dataset_filter": None,
        "reward_funcs": ["accuracy", {"name": "format", "weight": 0}], "keep_at_least": {"format": 1},
        "problems_per_shard": 2, "from_traces": True,
    }  # fmt: skip
    return make(*words(tiny_base, tmp_path / "rows", **keys | changes))


@pytest.mark.parametrize("form", ["open-r1", "messages", "prompt and completion"])
def test_traces_are_judged_and_shown_in_our_template(tiny_base: Path, tmp_path: Path, form: str) -> None:
    assert traces(tiny_base, tmp_path, rows_as(form)) == 0
    rows = rows_of(tmp_path / "rows")
    assert [row.completion for row in rows] == [thought(answer) for answer in QUESTIONS.values()]
    for row, question in zip(rows, QUESTIONS, strict=True):
        assert row.prompt.startswith("A conversation between User") and f"User: {question}. Assistant:" in row.prompt
        assert row.lineage == {"stage": "make_cold_start", "set": str(tmp_path / "traces.jsonl")}
    counts = report_of(tmp_path / "rows")["total"]
    assert (counts["problems"], counts["samples"], counts["dropped"]) == (3, 6, {"wrong": 3})


def test_the_tag_that_a_prompt_opened_goes_over_to_the_completion(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{q} <think>", "completion": thought(a).removeprefix("<think>"), "answer": a}
            for q, a in QUESTIONS.items()]  # fmt: skip
    assert traces(tiny_base, tmp_path, rows, prompt_template="plain") == 0
    read = [(row.prompt, row.completion) for row in rows_of(tmp_path / "rows")]
    assert read == [(q, thought(a)) for q, a in QUESTIONS.items()]


def test_a_question_whose_rewriting_failed_may_come_again_and_a_resume_knows_no_less(
    tiny_base: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same row twice, the first time rewritten badly; one run is broken off between the two."""
    first, second = ({"prompt": q, "completion": thought(a), "answer": a} for q, a in [*QUESTIONS.items()][:2])
    rewriting = {"rewrite_url": server.url, "rewrite_model": "helper", "problems_per_shard": 1}
    write, made = ShardWriter.write, []

    def broken_off(writer: ShardWriter, rows: Any, *, state: Any) -> Path:
        if writer.next == 2:
            raise KeyboardInterrupt
        return write(writer, rows, state=state)

    def cut_once(handler: Any, request: dict[str, Any]) -> None:
        again = len([1 for asked, _ in server.requests if asked["messages"] == request["messages"]]) > 1
        end = "stop" if again or "2 + 3" not in request["messages"][0]["content"] else "length"
        handler.say(thought("5" if "2 + 3" in request["messages"][0]["content"] else "8"), "helper", finish_reason=end)

    server.answer(cut_once)
    for folder in ("whole", "cut"):
        server.requests.clear()
        (tmp_path / folder).mkdir()
        given = (tiny_base, tmp_path / folder, [first, second, first])
        if folder == "cut":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(ShardWriter, "write", broken_off)
                traces(*given, **rewriting)
        assert traces(*given, **rewriting, resume="auto") == 0
        made.append([row.id for row in rows_of(tmp_path / folder / "rows")])
        assert report_of(tmp_path / folder / "rows")["total"]["dropped"] == {"not rewritten: no answer, or cut off": 1}
    assert made[0] == made[1] == ["traces.jsonl:2#0", "traces.jsonl:3#0"]


def test_rows_without_a_gold_answer_are_kept_unverified_and_counted_so(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{**row, "answer": row["answer"] if number < 2 else None} for number, row in enumerate(rows_as("messages"))]
    assert traces(tiny_base, tmp_path, rows) == 0
    assert len(rows_of(tmp_path / "rows")) == 1 + 4
    counts = report_of(tmp_path / "rows")["total"]
    assert (counts["samples"], counts["judged"], counts["correct"]) == (6, 2, 1)


def test_a_gold_column_that_no_row_has_is_named_and_null_takes_the_rows_as_they_are(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traces(tiny_base, tmp_path, rows_as("messages"), dataset_answer_column="gold") == 2
    assert "no row of" in (told := capsys.readouterr().err) and "'gold'" in told
    measures = [{"name": "format", "weight": 0}]
    assert traces(tiny_base, tmp_path, rows_as("messages"), dataset_answer_column=None, reward_funcs=measures) == 0
    assert len(rows_of(tmp_path / "rows")) == 6


def test_traces_of_a_benchmark_are_left_out(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"q": "what is 2+3"}))
    benchmark = {
        "dataset_name": str(tmp_path / "{split}.jsonl"), "dataset_kwargs": {}, "dataset_filter": None,
        "dataset_prompt_column": "q", "dataset_answer_column": None,
    }  # fmt: skip
    assert traces(tiny_base, tmp_path, rows_as("messages"), decontaminate=[benchmark]) == 0
    assert "1 more share words with a benchmark: left out" in capsys.readouterr().out
    assert [row.columns["answer"] for row in rows_of(tmp_path / "rows")] == ["8", "7"]


def test_a_row_that_is_no_conversation_is_named_before_anything_is_written(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert traces(tiny_base, tmp_path, [*rows_as("messages"), {"question": "?"}]) == 2
    assert "traces.jsonl, line 7: no conversation" in capsys.readouterr().err
    assert not (tmp_path / "rows").exists()
