"""Traces of a teacher behind a real HTTP server: asked, counted, written, gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.conversations import read_conversations
from recipes import teacher_traces
from recipes.lineage import fingerprint_of
from tests.http_server import Handler, Server

QUESTIONS = [f"What is {n} + 1?" for n in range(6)]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": q, "answer": str(n + 1)}) + "\n" for n, q in enumerate(QUESTIONS)))
    return path


def teach(handler: Handler, request: dict[str, Any]) -> None:
    """The right sum; of every second question nothing that ends."""
    asked = request["messages"][-1]["content"]
    number = QUESTIONS.index(asked)
    finish = "length" if number % 2 and request["max_tokens"] > 1 else "stop"
    handler.say(f"<think>{number} + 1</think> <answer>{number + 1}</answer>", "big", finish_reason=finish)


def collect(url: str, problems: Path, folder: Path, more: str = "") -> int:
    given = f"--teacher_url {url} --teacher_model big --dataset_name {problems} --output_dir {folder} {more}"
    given += " --num_generations 2 --problems_per_shard 2 --teacher_timeout 5 --teacher_concurrency 2"
    return teacher_traces.main(given.split())


def test_whole_answers_become_rows_and_the_others_are_counted(
    server: Server, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer(teach)
    assert collect(server.url, problems, tmp_path / "rows") == 0
    assert "12 answers: 6 kept, 6 cut off" in capsys.readouterr().out
    rows = list(read_conversations(str(tmp_path / "rows")))
    assert [row.prompt[-1]["content"] for row in rows] == [q for q in QUESTIONS[::2] for _ in range(2)]
    assert len({row.id for row in rows}) == 6
    assert all(row.completion.endswith(f"<answer>{row.columns['answer']}</answer>") for row in rows)
    assert rows[0].lineage == {"teacher": "big", "temperature": 0.6, "top_p": 0.95}
    asked = [request for request, _ in server.requests if request["max_tokens"] > 1]
    assert len({request["seed"] for request in asked}) == len(asked) == 12
    lineage = json.loads((tmp_path / "rows" / "lineage.json").read_text())
    assert lineage["inputs"]["problems"] == {"name": str(problems), "sha256": fingerprint_of(problems)}
    assert lineage["inputs"]["teacher"]["name"] == "big" and lineage["config"]["num_generations"] == 2
    assert lineage["counts"]["kept"] == lineage["counts"]["cut off"] == 6


def test_what_breaks_off_goes_on_behind_the_last_shard(
    server: Server, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer(teach)
    monkeypatch.setattr(teacher_traces.ShardWriter, "write", stop_at_third(teacher_traces.ShardWriter.write))
    with pytest.raises(KeyboardInterrupt):
        collect(server.url, problems, tmp_path / "rows")
    monkeypatch.undo()
    server.requests.clear()
    assert collect(server.url, problems, tmp_path / "rows") == 2
    assert "already holds rows: set `resume: auto`" in capsys.readouterr().err
    assert collect(server.url, problems, tmp_path / "rows", "--resume must --temperature 1.0") == 2
    assert "rows of another temperature" in capsys.readouterr().err
    assert collect(server.url, problems, tmp_path / "rows", "--resume must") == 0
    assert {request["messages"][-1]["content"] for request, _ in server.requests if request["max_tokens"] > 1} == {
        QUESTIONS[4], QUESTIONS[5],
    }  # fmt: skip
    assert len(list(read_conversations(str(tmp_path / "rows")))) == 6


def failing(broken: set[int], check: bool = False) -> Any:
    """`teach`, but without an answer to these questions; `check`: nor to the one token by which a server is tried."""

    def answer(handler: Handler, request: dict[str, Any]) -> None:
        number = QUESTIONS.index(request["messages"][-1]["content"])
        if number in broken and (check or request["max_tokens"] > 1):
            return handler.send(b"no", status=400)
        return teach(handler, request)

    return answer


def questions_of(folder: Path) -> list[int]:
    return [QUESTIONS.index(row.prompt[-1]["content"]) for row in read_conversations(str(folder))]


def test_a_question_without_an_answer_is_asked_again_by_the_next_run(
    server: Server, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer(failing({0, 3}))
    assert collect(server.url, problems, tmp_path / "rows") == 2
    told = capsys.readouterr()
    assert "2 of 6 problems have no answer" in told.err and "8 answers: 4 cut off, 4 kept" in told.out
    assert questions_of(tmp_path / "rows") == [2, 2, 4, 4]
    server.answer(failing({3}))
    assert collect(server.url, problems, tmp_path / "rows", "--resume must") == 2
    assert "1 of 6 problems have no answer" in capsys.readouterr().err
    server.requests.clear()
    server.answer(teach)
    assert collect(server.url, problems, tmp_path / "rows", "--resume must") == 0
    assert "12 answers: 6 cut off, 6 kept" in capsys.readouterr().out, "of all three runs"
    asked = [request for request, _ in server.requests if request["max_tokens"] > 1]
    assert [request["messages"][-1]["content"] for request in asked] == [QUESTIONS[3]] * 2
    assert questions_of(tmp_path / "rows") == [2, 2, 4, 4, 0, 0]


def test_a_server_that_dies_marks_nothing_as_done(
    server: Server, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It dies in the second shard of three, with fewer failures than its breaker takes."""
    dying, asked = failing(set(range(6)), check=True), []

    def dies(handler: Handler, request: dict[str, Any]) -> None:
        asked.append(request["max_tokens"])
        return teach(handler, request) if len(asked) <= 1 + 2 * 2 else dying(handler, request)

    server.answer(dies)
    assert collect(server.url, problems, tmp_path / "rows") == 2
    assert "does not answer for the model 'big'" in capsys.readouterr().err
    assert len(list((tmp_path / "rows").glob("*.parquet"))) == 1
    server.answer(teach)
    assert collect(server.url, problems, tmp_path / "rows", "--resume must") == 0
    assert questions_of(tmp_path / "rows") == [0, 0, 2, 2, 4, 4]


def test_a_run_without_a_row_is_an_error(
    server: Server, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer(lambda handler, request: handler.say("so", "big", finish_reason="length"))
    assert collect(server.url, problems, tmp_path / "rows") == 2
    assert "no answer could be kept: 12 cut off" in capsys.readouterr().err


def stop_at_third(write: Any) -> Any:
    def stopping(self: Any, rows: Any, *, state: Any) -> Any:
        if self.next == 2:
            raise KeyboardInterrupt
        return write(self, rows, state=state)

    return stopping


def test_a_server_without_the_teacher_is_named_before_any_work(
    server: Server, problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer(lambda handler, request: handler.say("I am another", "small"))
    assert collect(server.url, problems, tmp_path / "rows") == 2
    assert f"the server at {server.url} does not answer for the model 'big'" in capsys.readouterr().err
    assert len(server.requests) == 1 and not list(tmp_path.glob("rows/*.parquet"))
