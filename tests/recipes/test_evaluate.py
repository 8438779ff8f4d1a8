"""Evaluations as a person runs them: a checkpoint, a server, a file of completions; figures, folders, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import TrainerState

from grpo.config import AdapterConfig, EvalConfig, ModelConfig, SamplingConfig
from grpo.config.parse import parse_flat
from grpo.distributed import Dist
from grpo.errors import CheckpointError, ConfigError, DataError, EndpointError
from grpo.evaluation import evaluate as evaluate_held_out
from grpo.monitor.completions import read_completions
from grpo.monitor.samples import SampleStore
from grpo.monitor.show import Pager
from grpo.policy.load import load_policy
from recipes.evaluate import EvaluateConfig, evaluate
from tests.http_server import Handler, Server

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "recipes" / "configs" / "tiny_v3" / "evaluate.yaml"
MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
SUMS = {"size": 600, "seed": 1, "min_terms": 3, "max_terms": 5, "min_digits": 1, "max_digits": 1}
SMALL = {"dataset_kwargs": SUMS, "num_problems": 10, "num_generations": 8, "problems_per_chunk": 4}


def flags(**settings: Any) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", text_of(value))]


def text_of(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)


def run(folder: Path, *, config: Path | None = CONFIG, **settings: Any) -> dict[str, Any]:
    """The summary of an evaluation in this process."""
    given = ["--config", str(config)] if config else []
    assert evaluate(parse_flat([*given, *flags(output_dir=folder, **settings)], EvaluateConfig)) == 0
    return json.loads((folder / "summary.json").read_text())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Every stored sample, in order, without the number of the file it lies in."""
    return [
        {name: value for name, value in row.items() if name not in ("step", "rollout")}
        for row in read_completions(folder)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small evaluation of the shipped base."""
    folder = tmp_path_factory.mktemp("evaluation") / "whole"
    run(folder, **SMALL)
    return folder


@pytest.mark.parametrize("asked", ["r1_zero", "chat"])
def test_a_model_that_is_asked_in_another_frame_than_it_was_trained_in(
    asked: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_base, tmp_path / "final")
    trained = {"prompt_template": "r1_zero", "num_generations": 16}
    (model / "lineage.json").write_text(json.dumps({"stage": "r1_zero", "config": trained}))
    run(tmp_path / "figures", model_name_or_path=model, prompt_template=asked, **{**SMALL, "num_generations": 1})
    said = (
        "WARNING: gym-chain_sum: not asked in the frame that the model was trained in: set `prompt_template: r1_zero`"
    )
    assert (said in capsys.readouterr().out) is (asked == "chat")


def test_the_figures_are_those_of_a_runs_own_evaluation(tiny_base: Path, tmp_path: Path) -> None:
    """The demo's evaluation of the same weights, problems, seed and temperature."""
    from recipes.asking.asked import ask, entries

    settings = {"temperature": 1.0, "top_p": 1.0, "seed": 1234, **SMALL}
    (one,) = run(tmp_path / "ours", **settings)["benchmarks"].values()
    cfg = parse_flat(["--config", str(CONFIG), *flags(output_dir="x", **settings)], EvaluateConfig)
    policy = load_policy(ModelConfig(model_name_or_path=str(tiny_base)), AdapterConfig(), device=torch.device("cpu"))
    (entry,) = entries(cfg.data)
    asked = ask(entry, cfg.protocol, tokenizer=policy.tokenizer)
    theirs, _ = evaluate_held_out(
        policy,
        asked.problems,
        asked.rubric,
        sampling=SamplingConfig(max_completion_length=40),
        cfg=EvalConfig(eval_samples=8, eval_temperature=1.0, eval_seed=1234),
        dist=Dist(),
        trainer_state=TrainerState(),
    )
    ours = {name: figure["mean"] for name, figure in one["figures"].items()}
    for name in ("pass@1", "pass@8", "format_rate", "mean_length", "clipped_ratio"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-12), name
    assert ours["cons@8"] == theirs["maj@8"]
    assert 0 < ours["pass@1"] < 1


def test_every_sample_is_stored_with_all_that_it_was_made_by(whole: Path) -> None:
    rows = rows_of(whole)
    assert len(rows) == 80 and [row["sibling"] for row in rows] == list(range(8)) * 10
    assert [row["problem"] for row in rows[::8]] == list(range(10))
    settings = {
        "temperature": 0.6,
        "top_p": 0.95,
        "max_completion_length": 40,
        "seed": 1234,
        "benchmark": "gym-chain_sum",
    }
    for row in rows:
        assert {name: row[name] for name in settings} == settings
        assert len(row["prompt_sha256"]) == len(row["template_sha256"]) == 64
        assert row["verdict/gym"] in ("correct", "wrong", "no_answer") and row["stop_reason"] in ("eos", "length")
        assert row["correct"] is (row["verdict/gym"] == "correct")
    assert len({row["prompt_sha256"] for row in rows}) == 10 and len({row["template_sha256"] for row in rows}) == 1
    assert len(Pager(whole).rows) == 2 * 8, "grpo show pages through them; the newest file holds the last two problems"


def test_the_page_stands_alone_and_holds_figures_lengths_and_samples(whole: Path) -> None:
    page = (whole / "evaluation.html").read_text()
    summary = json.loads((whole / "summary.json").read_text())["benchmarks"]["gym-chain_sum"]
    figure = summary["figures"]["pass@1"]
    assert f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]" in page
    assert "<script" not in page and "http" not in page
    assert page.count("<rect") > 5 and page.count('class="sample') == 4 * 2
    assert "template_sha256" in page


def test_lineage_and_summary_say_what_was_evaluated(whole: Path, tiny_base: Path) -> None:
    lineage = json.loads((whole / "lineage.json").read_text())
    summary = json.loads((whole / "summary.json").read_text())
    assert lineage["stage"] == "evaluate" and lineage["counts"] == {"gym-chain_sum": 10}
    assert lineage["inputs"]["model"]["sha256"] == summary["content_sha256"]
    one = summary["benchmarks"]["gym-chain_sum"]
    assert (one["problems"], one["samples"], one["unjudged"]) == (10, 8, 0)
    assert sum(one["verdicts"].values()) == 80


@pytest.mark.normal
def test_a_killed_evaluation_goes_on_behind_what_is_stored(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    words = ["--config", str(CONFIG), *flags(output_dir=folder, **SMALL | {"problems_per_chunk": 2})]
    process = subprocess.Popen([sys.executable, "-m", "recipes.evaluate", *words], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(folder.glob("completions/step-*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    stored = {path: path.stat().st_mtime_ns for path in folder.glob("completions/*.parquet")}
    run(folder, **SMALL | {"problems_per_chunk": 2})
    assert all(path.stat().st_mtime_ns == then for path, then in stored.items()), "what was there is not done again"
    assert rows_of(folder) == rows_of(whole), "and neither the kill nor the size of a chunk shows"
    assert (folder / "results.jsonl").read_text() == (whole / "results.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_make_the_same_samples(whole: Path, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file", "recipes/accelerate/ddp.yaml",
        "--main_process_port", "0", "-m", "recipes.evaluate", "--config", str(CONFIG),
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    settings = flags(output_dir=tmp_path / "two", **SMALL)
    done = subprocess.run([*command, *settings], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows_of(tmp_path / "two") == rows_of(whole)


def test_a_finished_evaluation_is_not_asked_again_and_another_one_is_refused(whole: Path) -> None:
    before = rows_of(whole)
    run(whole, **SMALL)
    assert rows_of(whole) == before
    with pytest.raises(ConfigError, match=r"temperature \(0\.6 there, 1\.0 here\).*another output_dir"):
        run(whole, **SMALL, temperature=1.0)
    with pytest.raises(ConfigError, match="`resume` is never"):
        run(whole, **SMALL, resume="never")
    assert rows_of(whole) == before


def test_a_fresh_folder_is_refused_where_an_old_one_must_be_and_a_foreign_one_always(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="`resume` is must"):
        run(tmp_path / "fresh", **SMALL, resume="must")
    assert not (tmp_path / "fresh").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt but no evaluation"):
        run(tmp_path, **SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "temperature: got 0.*above 0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"dataset_name": "gym:nothing"}, "gym:nothing is not among the tasks"),
        ({"dataset_name": "rows.jsonl", "dataset_kwargs": {}}, "no file 'rows.jsonl'"),
        ({"dataset_name": "aime24", "dataset_kwargs": {}}, "'HuggingFaceH4/aime_2024'.*could not be loaded"),
        ({"benchmarks": ["gsm8k"]}, "give one of the two"),
        ({"dataset_name": "null", "benchmarks": ["gym:chain_sum", "gym:chain_sum"]}, "gym-chain_sum is there twice"),
        ({"dataset_name": "null", "benchmarks": [{"dataset_nam": "gsm8k"}]}, "dataset_nam"),
        ({"num_problems": 0}, "num_problems: got 0; allowed: at least 1"),
        (
            {"dataset_name": "null", "benchmarks": [{"dataset_name": "gym:chain_sum", "num_problems": -1}]},
            "num_problems: got -1",
        ),
        ({"max_completion_length": 100_000}, "max_position_embeddings"),
        ({"model_name_or_path": "nowhere/to/be/found"}, "nowhere/to/be/found"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        run(tmp_path / "out", **SMALL | {"dataset_kwargs": {"size": 50}} | settings)
    assert not (tmp_path / "out").exists()


class TestServer:
    """Four questions to a server that answers some rightly; its answers carry the seed they were drawn with."""

    SETTINGS: ClassVar = {
        "model_name_or_path": "tiny",
        "dataset_name": "",
        "num_generations": 3,
        "max_completion_length": 50,
        "server_retries": 0,
        "server_concurrency": 2,
        "problems_per_chunk": 1,
    }

    @pytest.fixture
    def server(self):
        with Server() as running:
            yield running

    @pytest.fixture
    def settings(self, server: Server, tmp_path: Path) -> dict[str, Any]:
        rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return self.SETTINGS | {"dataset_name": f"gsm8k:{path}", "base_url": server.url}

    @staticmethod
    def answer(handler: Handler, request: dict[str, Any]) -> None:
        n = int(request["messages"][-1]["content"].split()[2])
        right = n in (0, 1) or (n == 2 and request.get("seed", 0) % 2)
        text = f"<think>hm {request.get('seed')}</think> \\boxed{{{n + 1 if right else 99}}}"
        handler.answer(
            {"message": {"content": text}, "finish_reason": "length" if n == 3 else "stop"},
            "tiny",
            usage={"completion_tokens": 10 + n},
        )

    def test_figures_and_rows(self, server: Server, settings: dict[str, Any], tmp_path: Path) -> None:
        server.answer(self.answer)
        (one,) = run(tmp_path / "out", config=None, **settings)["benchmarks"].values()
        rows = rows_of(tmp_path / "out")
        assert len(rows) == 12 and len(server.requests) == 13  # one to see whether it is there
        odd = sum(row["correct"] for row in rows if row["problem"] == 2)
        means = {name: figure["mean"] for name, figure in one["figures"].items()}
        assert means["pass@1"] == pytest.approx((6 + odd) / 12)
        assert means["pass@3"] == (3 if odd else 2) / 4 and means["cons@3"] == (3 if odd > 1 else 2) / 4
        assert (means["mean_length"], means["clipped_ratio"]) == (11.5, 0.25)
        assert {row["stop_reason"] for row in rows} == {"eos", "length"}

    def test_a_server_that_is_down_is_an_error_before_anything_is_written(
        self, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(EndpointError, match="Start it"):
            run(tmp_path / "out", config=None, **settings | {"base_url": "http://127.0.0.1:9/v1"})
        assert not (tmp_path / "out").exists()

    def test_what_failed_is_said_and_asked_again_alone(
        self, server: Server, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        def refusing(handler: Handler, request: dict[str, Any]) -> None:
            if "What is 2" in request["messages"][-1]["content"]:
                handler.send(b"overloaded", 500)
            else:
                self.answer(handler, request)

        server.answer(refusing)
        with pytest.raises(EndpointError, match=r"1 problems have no answer.*problem 2 of gsm8k.*overloaded.*again"):
            run(tmp_path / "out", config=None, **settings | {"problems_per_chunk": 2})  # the last one is not full
        assert not (tmp_path / "out" / "summary.json").exists()
        assert SampleStore(tmp_path / "out").done["gsm8k"] == {0, 1, 3}
        server.answer(self.answer)
        server.requests.clear()
        run(tmp_path / "out", config=None, **settings)
        asked = [request["messages"][-1]["content"] for request, _ in server.requests[1:]]
        assert asked == ["What is 2 + 1?"] * 3

    def test_what_only_a_loaded_model_has_is_refused(self, settings: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="stop_strings"):
            run(tmp_path / "out", config=None, **settings, stop_strings=["x"])


def test_a_server_that_serves_the_tiny_base_gives_its_figures(whole: Path, tmp_path: Path) -> None:
    """Text prompts go to /completions: what the checkpoint said comes back over HTTP and is graded alike."""
    said: dict[str, list[str]] = {}
    for row in rows_of(whole):
        said.setdefault(row["prompt"], []).append(row["completion"])

    def serve(handler: Handler, request: dict[str, Any]) -> None:
        left = said[request["prompt"]]
        text = left[0] if request["max_tokens"] == 1 else left.pop(0)
        handler.answer({"text": text, "finish_reason": "stop"}, "tiny", usage={"completion_tokens": 1})

    with Server() as server:
        server.answer(serve)
        over_http = run(tmp_path / "out", **SMALL, base_url=server.url, model_name_or_path="tiny", server_concurrency=1)
    (theirs,) = json.loads((whole / "summary.json").read_text())["benchmarks"].values()
    (ours,) = over_http["benchmarks"].values()
    for name in ("pass@1", "pass@8", "cons@8", "format_rate"):
        assert ours["figures"][name] == theirs["figures"][name]
    assert ours["protocol"] == theirs["protocol"], "and the two may be compared"


@pytest.mark.normal
def test_the_flags_of_real_outputs_are_reproduced(shared_data: Path, tmp_path: Path) -> None:
    """All 5,276 judgements that GSM8K's example outputs come with, and with them each model's accuracy."""
    path = shared_data / "gsm8k_example_model_solutions.jsonl"
    flagged = [json.loads(line) for line in path.read_text().splitlines()]
    for model in MODELS:
        (one,) = grade_file(path, tmp_path / model, [model])["benchmarks"].values()
        accuracy = sum(row[model]["is_correct"] for row in flagged) / len(flagged)
        assert one["figures"]["pass@1"]["mean"] == pytest.approx(accuracy, abs=1e-12)
        assert one["own_verdicts"] == {"agree": 1319, "of": 1319}


def test_several_columns_are_several_samples(tmp_path: Path) -> None:
    path = written_file(tmp_path, [("1/2", "0.5", "3"), ("2", "2", "1+1")])
    (one,) = grade_file(path, tmp_path / "out", ["a", "b"])["benchmarks"].values()
    figures = {name: figure["mean"] for name, figure in one["figures"].items()}
    assert figures["pass@1"] == 0.5 and figures["pass@2"] == 1.0 and figures["cons@2"] == 1.0
    assert one["own_verdicts"] == {"agree": 4, "of": 4}
    assert "mean_length" not in figures and "clipped_ratio" not in figures


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = written_file(tmp_path, [("1", "1", "2")])
    with pytest.raises(DataError, match=r"line 1 has no column 'c\.solution'"):
        grade_file(path, tmp_path / "out", ["c"])


@pytest.mark.parametrize("spelled", [("True", "False"), ("1", "0"), ("true", "FALSE")])
def test_verdicts_of_a_csv_are_read_as_they_are_meant(tmp_path: Path, spelled: tuple[str, str]) -> None:
    right, wrong = spelled
    one = grade_csv(tmp_path, [("2", right), ("3", wrong), ("3", wrong), ("2", wrong)])
    assert one["own_verdicts"] == {"agree": 3, "of": 4}


def test_a_verdict_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: the verdict is 'yes'; allowed: true, 1, false, 0"):
        grade_csv(tmp_path, [("2", "true"), ("2", "yes")])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(["2", "3"], [True, False]), (["2", "3"], [True])], "line 2: 2 completions and 1 verdicts"),
        ([(["2", "3"], True), (["2", "3"], False)], "line 1: 2 completions and 1 verdicts"),
        ([], "rows.jsonl holds no row"),
    ],
)
def test_a_file_whose_verdicts_cannot_be_paired_is_refused_before_anything_is_graded(
    rows: list[tuple[list[str], Any]], said: str, tmp_path: Path
) -> None:
    lines = [{"prompt": "1+1", "answer": "2", "completion": texts, "right": right} for texts, right in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"model_name_or_path": "x", "samples": tmp_path / "rows.jsonl", "samples_correct_columns": ["right"]}
    with pytest.raises(DataError, match=said):
        run(tmp_path / "out", config=None, **given)
    assert not (tmp_path / "out").exists()


def grade_csv(folder: Path, rows: list[tuple[str, str]]) -> dict[str, Any]:
    path = folder / "rows.csv"
    path.write_text("prompt,answer,completion,right\n" + "".join(f"1+1,2,\\boxed{{{a}}},{v}\n" for a, v in rows))
    given = {"model_name_or_path": "x", "samples": path, "samples_correct_columns": ["right"]}
    (one,) = run(folder / "out", config=None, **given)["benchmarks"].values()
    return one


def written_file(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    path = folder / "rows.jsonl"
    models = [
        {"question": f"q{n}", "ground_truth": f"A: {gold}"}
        | {"a": {"solution": f"so\nA: {a}", "is_correct": True}, "b": {"solution": f"A: {b}", "is_correct": False}}
        for n, (gold, a, b) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in models))
    return path


def grade_file(path: Path, folder: Path, models: list[str]) -> dict[str, Any]:
    return run(
        folder,
        config=None,
        model_name_or_path=models[0],
        samples=path,
        samples_prompt_column="question",
        samples_answer_column="ground_truth",
        samples_completion_columns=[f"{model}.solution" for model in models],
        samples_correct_columns=[f"{model}.is_correct" for model in models],
        reward_funcs=[{"name": "accuracy", "marker": "A:"}],
    )


def test_scores_of_every_reward_are_figures_and_without_a_verdict_there_is_no_accuracy(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Questions without a gold answer, measured by rewards that only score: what a table of a general task needs."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(3)))
    (one,) = run(
        tmp_path / "out",
        config=None,
        model_name_or_path=tiny_base,
        dataset_name=path,
        dataset_answer_column="null",
        prompt_template="plain",
        reward_funcs=["format", {"name": "tag_count", "weight": 0}],
        num_generations=2,
        max_completion_length=8,
    )["benchmarks"].values()
    rows = rows_of(tmp_path / "out")
    for name in ("format", "tag_count"):
        mean = sum(row[f"reward/{name}"] for row in rows) / len(rows)
        assert one["figures"][f"reward/{name}"]["mean"] == pytest.approx(mean)
    assert not any(name.startswith(("pass@", "cons@")) for name in one["figures"])
    assert one["unjudged"] == 6


def test_several_benchmarks_in_one_run_each_with_its_own_samples_and_verifier(tiny_base: Path, tmp_path: Path) -> None:
    choices = tmp_path / "gpqa.jsonl"
    options = {"Correct Answer": "1", **{f"Incorrect Answer {n}": str(n + 1) for n in (1, 2, 3)}}
    choices.write_text(json.dumps({"Question": "?", **options}) + "\n")
    kwargs = {"size": 100, "seed": 1, "min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    summary = run(
        tmp_path / "out",
        config=None,
        model_name_or_path=tiny_base,
        benchmarks=[
            {"dataset_name": "gym:chain_sum", "dataset_kwargs": kwargs, "num_generations": 3, "name": "sums"},
            {"dataset_name": f"gpqa:{choices}", "num_generations": 2},
        ],
        prompt_template="plain",
        num_problems=2,
        max_completion_length=8,
    )
    assert {name: (one["problems"], one["samples"]) for name, one in summary["benchmarks"].items()} == {
        "sums": (2, 3),
        "gpqa": (1, 2),
    }
    judged = [{verdict.split("/")[0] for verdict in one["verdicts"]} for one in summary["benchmarks"].values()]
    assert judged == [{"gym"}, {"choice"}]
