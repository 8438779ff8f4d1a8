"""Rejection sampling on the shipped tiny base: what it keeps, what it reports, and kills that change nothing."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

from data.conversations import Conversation, ShardWriter
from data.curate import words as words_of
from data.gym import load_gym
from grpo.policy.preference import PreferenceModel
from recipes import rejection_sampling
from recipes.lineage import fingerprint_of
from rewards.format import is_well_formed
from tests.grpo.launching import launch_file, launched
from tests.http_server import Server
from tests.recipes.rows_process import SUMS, killed_at, report_of, rows_of, words

EVEN = [[digit] for digit in "02468"]


def sample(*given: str) -> int:
    return rejection_sampling.main(list(given))


@pytest.fixture(scope="module")
def whole(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("whole") / "rows"
    assert sample(*words(tiny_base, folder)) == 0
    return folder


def test_rows_are_right_well_formed_and_different(whole: Path) -> None:
    """The oracle of right and wrong is reasoning-gym's own answer."""
    problems = {p.id: p for p in load_gym("chain_sum", template="r1_zero", **SUMS["dataset_kwargs"]).problems}
    rows = rows_of(whole)
    assert len(rows) > 30
    for row in rows:
        problem = problems[row.id.partition("#")[0]]
        assert row.prompt == problem.prompt and row.columns["answer"] == problem.answer
        assert row.completion.endswith(f"<answer>{problem.answer}</answer>") and is_well_formed(row.completion)
    assert len({(row.prompt, " ".join(words_of(row.completion))) for row in rows}) == len(rows)


def test_the_report_counts_what_is_there(whole: Path, tiny_base: Path) -> None:
    rows, report = rows_of(whole), report_of(whole)
    counts = report["tasks"]["chain_sum"]
    assert counts == report["total"]
    assert counts["samples"] == 4 * counts["problems"] == len(rows) + sum(counts["dropped"].values())
    assert counts["rows"] == len(rows) and counts["tokens"] == sum(row.columns["tokens"] for row in rows)
    assert counts["solved"] >= len({row.id.partition("#")[0] for row in rows})
    assert counts["dropped"]["wrong"] == counts["judged"] - counts["correct"]
    rates = {row.id.partition("#")[0]: row.columns["pass_rate"] for row in rows}
    assert fmean(rates.values()) > counts["correct"] / counts["judged"] > 0  # unsolved problems leave no row
    lineage = json.loads((whole / "lineage.json").read_text())
    assert lineage["inputs"]["model"] == {"name": str(tiny_base), "sha256": fingerprint_of(tiny_base)}
    assert lineage["counts"].items() >= report.items() and len(lineage["counts"]["problems_sha256"]) == 64
    assert rows[0].lineage["model_sha256"] == fingerprint_of(tiny_base) and rows[0].lineage["seed"] == 3


def test_a_person_sees_the_table(whole: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run asked to go on samples nothing and tells the same."""
    before = fingerprint_of(whole)
    assert sample(*words(tiny_base, whole, resume="must")) == 0
    table = capsys.readouterr().out
    assert "domain     problems  solved  samples  pass rate  rows  mean tokens" in table and "dropped: wrong" in table
    assert fingerprint_of(whole) == before


@pytest.mark.normal
def test_a_kill_in_the_middle_of_a_shard_changes_nothing(whole: Path, tiny_base: Path, tmp_path: Path) -> None:
    cut = tmp_path / "rows"
    assert killed_at(3, "rejection_sampling", words(tiny_base, cut)) == -signal.SIGKILL
    assert len(list(cut.glob("rows/train-*.parquet"))) == 3 and not (cut / "report.json").exists()
    assert rows_of(cut) == rows_of(whole)[: len(rows_of(cut))]
    assert sample(*words(tiny_base, cut, resume="auto")) == 0
    assert rows_of(cut) == rows_of(whole)
    assert report_of(cut) == report_of(whole)


@pytest.mark.slow
def test_two_processes_make_the_rows_of_one(whole: Path, tiny_base: Path, tmp_path: Path) -> None:
    given = words(tiny_base, tmp_path / "rows")
    with launched(
        *launch_file("ddp"), "-m", "recipes.rejection_sampling", *given, log=tmp_path / "log", OMP_NUM_THREADS="1"
    ) as launch:
        assert launch.wait() == 0, launch.output()
    assert rows_of(tmp_path / "rows") == rows_of(whole)
    assert report_of(tmp_path / "rows") == report_of(whole)


@pytest.mark.slow
def test_sigterm_ends_between_two_forwards_and_the_next_run_goes_on(
    whole: Path, tiny_base: Path, tmp_path: Path
) -> None:
    given, cut = words(tiny_base, tmp_path / "rows", sampler="reference"), tmp_path / "rows"
    with launched(*launch_file("cpu"), "-m", "recipes.rejection_sampling", *given, log=tmp_path / "log") as launch:
        while not list(cut.glob("rows/train-*")):
            assert launch.process.poll() is None, launch.output()
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait() != 0
    assert 0 < len(rows_of(cut)) < len(rows_of(whole))
    assert sample(*words(tiny_base, cut, resume="auto")) == 0
    assert [row.id for row in rows_of(cut)] == [row.id for row in rows_of(whole)]


def test_rows_made_with_other_settings_are_not_gone_on_with(
    whole: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(*words(tiny_base, whole)) == 2
    assert "already holds rows: set `resume: auto`" in capsys.readouterr().err
    assert sample(*words(tiny_base, whole, resume="auto", temperature=0.7, choose="best")) == 2
    told = capsys.readouterr().err
    assert "choose: 'all' then, now 'best'" in told and "temperature: 1.0 then, now 0.7" in told
    assert "problems" not in told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resume": "must"}, "holds no rows"),
        ({"keep_at_least": {"fromat": 1}}, "'fromat' is not among reward_funcs"),
        ({"max_per_problem": 0}, "max_per_problem: got 0"),
        ({"min_pass_rate": 0.9, "max_pass_rate": 0.1}, "min_pass_rate, max_pass_rate"),
        ({"problems_per_shard": 0}, "problems_per_shard: got 0"),
        ({"temperature": 0}, "temperature: got 0"),
        ({"mix_dataset": "rows.jsonl", "mix_share": 1}, "mix_share: got 1"),
        ({"reward_funcs": ["accuracy", "judge_missing"]}, "unknown reward 'judge_missing'"),
        ({"dataset_name": "rows.jsonl", "dataset_kwargs": {}}, "no file 'rows.jsonl'"),
        ({"max_completion_length": 100000}, "max_position_embeddings"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sampled(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    assert sample(*words(tiny_base, tmp_path / "rows", **change)) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("train-*"))


def test_nothing_good_enough_is_an_error_that_says_what_became_of_it(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {**SUMS["dataset_kwargs"], "size": 12}
    assert sample(*words(tiny_base, tmp_path / "rows", max_kept_length=1, dataset_kwargs=few)) == 2
    told = capsys.readouterr().err
    assert "no sample became a row" in told and "dropped: longer than max_kept_length=1" in told
    assert report_of(tmp_path / "rows")["total"]["rows"] == 0


def test_a_run_that_keeps_nothing_ends_after_some_shards(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tenth of the problems is more than four shards of one problem, and less than four of eight."""
    sizes = {1: 0.1, 8: 32}
    for shard, wanted in sizes.items():
        folder = tmp_path / str(shard)
        given = words(tiny_base, folder, max_kept_length=1, problems_per_shard=shard)
        assert sample(*given) == 2
        told = capsys.readouterr()
        (total,) = re.findall(r"([\d,]+) problems x 4 samples", told.out)
        problems = report_of(folder)["total"]["problems"]
        assert problems == (math.ceil(int(total) * wanted) if wanted < 1 else wanted) < int(total)
        assert f"no sample became a row, of {problems} problems" in told.err
        assert "dropped: longer than max_kept_length=1" in told.err


def test_problems_of_a_benchmark_are_not_sampled(
    whole: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark holds some of the training questions themselves: all of those and no others are missing."""
    asked = {row.id.partition("#")[0]: row.prompt for row in rows_of(whole)}
    planted = {id: prompt.partition("User: ")[2].partition(". Assistant:")[0] for id, prompt in list(asked.items())[:3]}
    (tmp_path / "test_bench.jsonl").write_text("".join(json.dumps({"q": text}) + "\n" for text in planted.values()))
    benchmark = {
        "dataset_name": str(tmp_path / "{split}_bench.jsonl"), "dataset_kwargs": {}, "dataset_prompt_column": "q",
        "dataset_answer_column": None,
    }  # fmt: skip
    clean = tmp_path / "rows"
    assert sample(*words(tiny_base, clean, decontaminate=[benchmark])) == 0
    assert "problems share words with a benchmark: left out" in capsys.readouterr().out
    left = {row.id.partition("#")[0] for row in rows_of(clean)}
    assert not left & planted.keys()
    # Ten words of these short questions are nearly all of them, so a neighbour may go with one; most stay.
    assert report_of(clean)["total"]["problems"] > 0.5 * report_of(whole)["total"]["problems"]


def test_what_was_solved_in_r1_zeros_frame_becomes_chat(whole: Path, tiny_base: Path, tmp_path: Path) -> None:
    assert sample(*words(tiny_base, tmp_path / "rows", rows_template="chat")) == 0
    rows = rows_of(tmp_path / "rows")
    assert [(row.id, row.completion) for row in rows] == [(row.id, row.completion) for row in rows_of(whole)]
    for row, framed in zip(rows, rows_of(whole), strict=True):
        [turn] = row.prompt
        assert turn["role"] == "user" and f"User: {turn['content']}. Assistant:" in framed.prompt


class TestMixedIn:
    @pytest.fixture(scope="class")
    @classmethod
    def others(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("others") / "chat.jsonl"
        turns = (
            [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": f"{n} to you"}]
            for n in range(60)
        )
        path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
        return path

    def test_the_share_is_what_was_asked_for(self, whole: Path, others: Path, tiny_base: Path, tmp_path: Path) -> None:
        given = words(tiny_base, tmp_path / "rows", mix_dataset=str(others), mix_share=0.25)
        assert sample(*given) == 0
        rows, sampled = rows_of(tmp_path / "rows"), rows_of(whole)
        general = [row for row in rows if row.task == "general"]
        assert [row for row in rows if row.task != "general"] == sampled
        assert len(general) == round(len(sampled) / 3) and len({row.completion for row in general}) == len(general)
        assert all(row.prompt.endswith(f"User: hello {row.completion.split()[0]}. Assistant:") for row in general)
        report = report_of(tmp_path / "rows")
        assert report["mixed"] == report["tasks"]["general"]["rows"] == len(general)
        assert report["tasks"]["general"]["tokens"] == sum(row.columns["tokens"] for row in general)

    @pytest.mark.slow
    def test_a_kill_while_they_are_added_changes_nothing(
        self, whole: Path, others: Path, tiny_base: Path, tmp_path: Path
    ) -> None:
        shards = len(list(whole.glob("rows/train-*")))
        folders = tmp_path / "whole", tmp_path / "cut"
        for folder in folders:
            given = words(tiny_base, folder, mix_dataset=str(others), mix_share=0.2)
            if folder.name == "cut":
                assert killed_at(shards, "rejection_sampling", given) == -signal.SIGKILL
                given.append("--resume=must")
            assert sample(*given) == 0
        assert rows_of(folders[0]) == rows_of(folders[1])

    @pytest.mark.slow
    def test_a_set_that_is_too_small_is_added_whole_with_a_warning(
        self, whole: Path, others: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert sample(*words(tiny_base, tmp_path / "rows", mix_dataset=str(others), mix_share=0.9)) == 0
        assert "asks for" in capsys.readouterr().out
        assert sum(row.task == "general" for row in rows_of(tmp_path / "rows")) == 60

    def test_a_conversation_of_a_benchmark_is_not_added(
        self, others: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "test_bench.jsonl").write_text("".join(json.dumps({"q": f"Hello, {n}!"}) + "\n" for n in range(50)))
        benchmark = {
            "dataset_name": str(tmp_path / "{split}_bench.jsonl"), "dataset_kwargs": {}, "dataset_prompt_column": "q",
            "dataset_answer_column": None,
        }  # fmt: skip
        given = words(tiny_base, tmp_path / "rows", mix_dataset=str(others), mix_share=0.9, decontaminate=[benchmark])
        assert sample(*given) == 0
        assert "50 conversations share words with a benchmark: left out" in capsys.readouterr().out
        mixed = {row.completion for row in rows_of(tmp_path / "rows") if row.task == "general"}
        assert mixed == {f"{n} to you" for n in range(50, 60)}

    def test_several_turns_do_not_fit_into_a_template_of_text(
        self, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        turns = [{"role": role, "content": "hi"} for role in ("user", "assistant") * 2]
        (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": turns}))
        given = words(tiny_base, tmp_path / "rows", mix_dataset=str(tmp_path / "chat.jsonl"))
        assert sample(*given) == 2
        assert "a conversation of 3 messages" in capsys.readouterr().err


def test_rows_without_a_rule_are_kept_by_a_judge(tiny_base: Path, tmp_path: Path) -> None:
    """Two domains in one run: sums judged by their rule, greetings by a served model and a threshold on its score."""

    def judge(handler: Any, request: dict[str, Any]) -> None:
        """Likes even numbers."""
        shown = request["messages"][-1]["content"]
        answer = shown.split("[answer ")[1].split("]\n", 1)[1].split("\n[end of answer")[0]
        handler.say(json.dumps({"score": 10 if re.findall("[0-9]", answer)[-1:] in EVEN else 5}))

    (tmp_path / "greetings.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(8)))
    with Server() as server:
        server.answer(judge)
        mixture = [
            {**{key: SUMS[key] for key in ("dataset_name", "dataset_kwargs", "dataset_filter")}, "keep": 0.2},
            {"dataset_name": str(tmp_path / "greetings.jsonl"), "dataset_answer_column": None, "task": "greeting"},
        ]
        given = words(
            tiny_base,
            tmp_path / "rows",
            dataset_mixture=mixture,
            reward_funcs=[
                {"name": "gym", "tasks": ["chain_sum"]},
                {"name": "judge", "tasks": ["greeting"], "model": "judge-1", "base_url": server.url},
            ],
            keep_at_least={"judge": 0.8},
        )
        cleared = [word for word in given if not word.startswith(("--dataset_name", "--dataset_kwargs", "--dataset_f"))]
        assert sample(*cleared) == 0
    greetings = [row for row in rows_of(tmp_path / "rows") if row.task == "greeting"]
    assert greetings and all(re.findall("[0-9]", row.completion)[-1:] in EVEN for row in greetings)
    assert all(row.columns["reward"] == 1.0 and row.columns["pass_rate"] is None for row in greetings)
    tasks = report_of(tmp_path / "rows")["tasks"]
    assert tasks["greeting"]["judged"] == 0 < tasks["chain_sum"]["judged"]
    assert tasks["greeting"]["dropped"]["judge below 0.8"] > 0 < tasks["chain_sum"]["rows"]


def test_the_best_of_a_problem_by_a_preference_model(tiny_base: Path, tmp_path: Path) -> None:
    """A real classifier, random; its scores are asked for once more, of each completion alone."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "greetings.jsonl").write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(6)))
    asked = {"dataset_name": str(tmp_path / "greetings.jsonl"), "dataset_answer_column": None, "dataset_kwargs": {}}
    settings = {"dataset_filter": None, "reward_funcs": [str(tmp_path / "model")], "keep_at_least": {}}
    for folder, rules in (("all", {}), ("best", {"choose": "best", "max_per_problem": 1})):
        assert sample(*words(tiny_base, tmp_path / folder, **asked, **settings, **rules)) == 0
    rows = rows_of(tmp_path / "all")
    model = PreferenceModel(model_name_or_path=str(tmp_path / "model"))
    best: dict[str, Conversation] = {}
    for row in rows:
        alone = model(prompts=[row.prompt], completions=[row.completion])[0]
        if alone.verdict is None:  # silence gets the lowest score of its call
            assert row.columns["reward"] == pytest.approx(alone.score, abs=1e-4)
        first = best.setdefault(row.id.partition("#")[0], row)
        if row.columns["reward"] > first.columns["reward"]:
            best[row.id.partition("#")[0]] = row
    assert len(rows) > len(best) == 6
    assert [row.id for row in rows_of(tmp_path / "best")] == [row.id for row in best.values()]


def test_a_folder_of_rows_is_not_overwritten_by_another_stage(tiny_base: Path, tmp_path: Path) -> None:
    ShardWriter(tmp_path / "rows" / "rows", conversational=False).write(
        [Conversation(id="0", prompt="q", completion="a")], state={"identity": {}, "tally": {}, "done": 0, "mixed": 0}
    )
    assert sample(*words(tiny_base, tmp_path / "rows", resume="auto")) == 2
