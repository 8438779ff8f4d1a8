"""Stages in a chain: their order, when one must run again, and what a kill leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpo.config.coerce import dump_yaml
from grpo.errors import ConfigError
from recipes import pipeline
from recipes.chaining.chain import Chain, Stage, in_order, kept_back
from recipes.lineage import fingerprint_of
from tests.http_server import Server

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "configs" / "tiny_v3"
SMALL = {"eval_problems": 2, "eval_samples": 2}
SUMS = {"dataset_kwargs": {"size": 400, "seed": 1, "heldout_share": 0.2, "min_terms": 3, "max_terms": 3,
                           "min_digits": 1, "max_digits": 1}}  # fmt: skip
STAGES = {
    "base": {
        "recipe": "pretrain_tiny", "config": str(TINY / "pretrain.yaml"), "steps": 2, "rows_per_step": 4, "warmup": 1,
        "threads": 1, **SMALL, **SUMS,
    },
    "r1_zero": {
        "recipe": "r1_zero", "config": str(TINY / "r1_zero.yaml"), "model_name_or_path": "$base", "max_steps": 6,
        "save_steps": 1, "problems_per_rollout": 2, "num_generations": 4, "max_completion_length": 8, **SMALL, **SUMS,
    },
}  # fmt: skip


def config(folder: Path, stages: dict = STAGES) -> list[str]:
    path = folder / "pipeline.yaml"
    path.write_text(dump_yaml({"output_dir": str(folder / "run"), "stages": stages}), encoding="utf-8")
    return ["--config", str(path)]


def stage(name: str, **keys: object) -> Stage:
    return Stage(name=name, recipe="r1_zero", keys=keys)


def test_stages_stand_behind_what_they_take_else_as_written() -> None:
    stages = [
        stage("last", reward_funcs=[{"name": "preference_model", "model_name_or_path": "$judge"}], start="$middle"),
        stage("judge"),
        stage("middle", model="$first/sub"),
        stage("first", text="costs $5 and $first_of_all is text"),
    ]
    assert stages[0].needs == ["judge", "middle"] and not stages[3].needs
    assert [s.name for s in in_order(stages)] == ["judge", "first", "middle", "last"]
    chain = Chain(folder=Path("run"), stages=stages)
    places = {"$judge": "run/judge/final", "$judge/rows": "run/judge/rows", "costs $5": "costs $5"}
    assert {text: chain.place(text) for text in places} == places


def test_files_that_work_one_after_another_work_in_a_chain_as_they_are() -> None:
    alone = [
        stage("second", model="runs/1/final", data=[{"name": "runs/1"}], near="runs/1-b", output_dir="runs/b"),
        stage("first", output_dir="runs/1"),
    ]
    second, first = pipeline.wired(alone)
    assert second.keys == {"model": "$first/final", "data": [{"name": "$first/"}], "near": "runs/1-b"}
    assert first.keys == {} and second.needs == ["first"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([stage("a", m="$bse"), stage("base")], r"a takes \$bse, which is no stage. Did you mean 'base'"),
        ([stage("a", m="$b"), stage("b", m="$a")], "these need one another"),
    ],
    ids=["unknown", "circle"],
)
def test_a_chain_that_cannot_be(stages: list[Stage], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        in_order(stages)


def test_the_shipped_chain_is_read_to_its_last_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Every recipe takes its keys, and what feeds what is what R1 did."""
    chain = ["--config", str(TINY / "pipeline.yaml"), "--output_dir", str(tmp_path), "--dry_run"]
    assert pipeline.main(chain) == 0
    lines = capsys.readouterr().out.splitlines()
    feeds = dict(re.search(r": (\w+) \(\w+\)(?: <- ([^:]*))?:", line).groups() for line in lines)
    assert feeds["second_sft"] == "world_base, rejection_sampling"  # the base again, not Dev2
    assert feeds["reasoning_rl"] == "cold_start_sft" and feeds["all_scenarios_rl"].startswith("second_sft")
    assert feeds["distill"] == "world_student, rejection_sampling" and feeds["preference"] == "world_base, manners"
    assert sum(name.startswith("evaluate_") for name in feeds) == 10 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "flags", "said"),
    [
        ({"recipe": "r2_zero"}, [], "r1_zero: no recipe 'r2_zero'"),
        ({"recipe": "contamination"}, [], "r1_zero: contamination is a command and no stage"),
        ({"max_stepz": 3}, [], "r1_zero: unknown key 'max_stepz'. Did you mean 'max_steps'"),
        ({"config": "nowhere.yaml"}, [], "config nowhere.yaml: No such file"),
        ({"launch": "nowhere.yaml --num_processes 2"}, [], "launch: 'nowhere.yaml --num_processes 2': no such file"),
        ({"launch": "  "}, [], "launch: '  ': no such file"),
        ({"launch": "'nowhere.yaml"}, [], "cannot be read: No closing quotation"),
        (
            {"dataset_name": "gsm8k:absent_{split}.jsonl", "dataset_kwargs": {}},
            [],
            "r1_zero: dataset_name: no file 'gsm8k:absent_{split}.jsonl'",
        ),
        ({}, ["--from", "r1zero"], "--from r1zero: no such stage. Did you mean 'r1_zero'"),
        ({}, ["--seeds", "0,one"], "seeds: got '0,one'"),
        ({}, ["--from", "r1_zero"], "r1_zero waits for base"),
    ],
    ids=["recipe", "no stage", "key", "file", "launch", "blank", "quote", "data", "from", "seeds", "missing input"],
)
def test_a_slip_is_told_before_anything_runs(
    change: dict, flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {**STAGES, "r1_zero": {**STAGES["r1_zero"], **change}}
    assert pipeline.main([*config(tmp_path, stages), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("stages"))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("{here}/rows_{{split}}.jsonl", "rows_train.jsonl"),
        ("{here}/rows_[x].jsonl", "rows_[x].jsonl"),
        ("traces.jsonl", "traces.jsonl"),
        ("problems_{{split}}.parquet", "problems_test.parquet"),
        ("gsm8k:gsm8k_train.jsonl", "gsm8k_train.jsonl"),
        ("math500:{here}/math.csv", "math.csv"),
        ("mine.py:reward", "mine.py"),
    ],
)
def test_a_stage_is_another_when_a_file_it_reads_has_changed(
    name: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {"list": [{"dataset_name": name.format(here=tmp_path)}]}
    chain = Chain(folder=tmp_path, stages=[stage := Stage(name="sft", recipe="cold_start_sft", keys=keys)])
    seen = [chain.identity(stage)]
    for seconds, text in enumerate(("1", "2", "2")):
        Path(file).write_text(text)
        os.utime(file, (seconds, seconds))
        seen.append(chain.identity(stage))
    assert seen[2] == seen[3] and len(set(seen)) == 3


def test_a_word_is_a_name_even_where_something_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Stage(name="rl", recipe="r1_zero", keys={"sampler": "fast", "dataset_name": "gym:gcd"})
    chain = Chain(folder=tmp_path, stages=[stage])
    before = chain.identity(stage)
    for name in ("fast", "gcd"):
        Path(name).write_text("1")
    assert chain.identity(stage) == before


def marked_done(chain: Chain) -> None:
    """As if every stage had run."""
    for done in chain.stages:
        (chain.output(done) / done.product).mkdir(parents=True)
        note = chain.folder / "stages" / f"{done.name}.json"
        note.parent.mkdir(exist_ok=True)
        note.write_text(json.dumps({"identity": chain.identity(done), "seconds": 1.0, "spent": 1.0}))


def test_a_stage_is_done_only_while_what_it_made_is_there(tmp_path: Path) -> None:
    first, second = stage("first"), stage("second", model_name_or_path="$first")
    chain = Chain(folder=tmp_path, stages=[first, second])
    marked_done(chain)
    assert [chain.standing(first), chain.standing(second)] == ["done", "done"]
    shutil.rmtree(chain.made("first"))
    assert [chain.standing(first), chain.standing(second)] == ["to resume", "waits for first"]
    shutil.rmtree(chain.output(first))
    assert chain.standing(first) == "to run" and chain.seconds() == {"second": 1.0}


def test_tables_are_written_only_of_what_the_file_says_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = []
    monkeypatch.setattr(pipeline, "summarise", lambda *_: written.append(1))
    stages = in_order(pipeline.wired([pipeline.to_stage(name, given, None) for name, given in STAGES.items()]))
    marked_done(Chain(folder=tmp_path / "run" / "seed-0", stages=stages))
    assert pipeline.main([*config(tmp_path), "--dry_run"]) == 0 and not written
    assert pipeline.main(config(tmp_path)) == 0 and written == [1]
    changed = {**STAGES, "r1_zero": {**STAGES["r1_zero"], "max_steps": 1}}
    assert pipeline.main([*config(tmp_path, changed), "--to", "base"]) == 0 and written == [1]
    assert "no tables are written" in (said := capsys.readouterr().out) and "seed 0, r1_zero: changed" in said


def test_the_time_of_an_attempt_that_was_killed_counts_to_its_newest_file(tmp_path: Path) -> None:
    chain = Chain(folder=tmp_path, stages=[rl := stage("rl")])
    note = tmp_path / "stages" / "rl.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"spent": 5.0, "began": 1000.0}))
    assert chain.spent(rl) == 5.0
    for name, written in (("old", 900), ("checkpoints/step-1/model", 1030), ("checkpoints/log", 1012)):
        file = chain.output(rl) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (written, written))
    assert chain.spent(rl) == 35.0
    note.write_text(json.dumps({"spent": 7.0}))
    assert chain.spent(rl) == 7.0


def processes_of(folder: Path) -> list[int]:
    """Those whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.normal
def test_killed_in_the_middle_and_run_again_it_ends_as_if_nothing_had_been(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    for folder in (unbroken, killed):
        folder.mkdir()
    assert pipeline.main(config(unbroken)) == 0
    assert "stage 2 of 2: r1_zero (r1_zero) <- base: to run" in capfd.readouterr().out

    process = subprocess.Popen([sys.executable, "-m", "recipes.pipeline", *config(killed)], cwd=ROOT)
    first = killed / "run" / "seed-0" / "r1_zero" / "checkpoints"
    while not list(first.glob("step-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while processes_of(killed):  # the stage learns of its parent's death and stops
        assert time.monotonic() < deadline
        time.sleep(0.1)
    note = killed / "run" / "seed-0" / "stages" / "r1_zero.json"
    assert (lost := json.loads(note.read_text()))["seconds"] is None and lost["began"] < time.time()
    base = killed / "run" / "seed-0" / "base" / "model.safetensors"
    made = base.stat().st_mtime_ns

    capfd.readouterr()
    assert pipeline.main(config(killed)) == 0
    assert "base (pretrain_tiny): done" in (said := capfd.readouterr().out) and "<- base: to resume" in said
    assert base.stat().st_mtime_ns == made
    assert "began" not in (ended := json.loads(note.read_text())) and ended["spent"] == ended["seconds"] > 0
    ends = [
        fingerprint_of(f / "run" / "seed-0" / "r1_zero" / "final" / "model.safetensors") for f in (unbroken, killed)
    ]
    assert ends[0] == ends[1]

    assert pipeline.main(config(killed)) == 0
    assert capfd.readouterr().out.count(": done") == 2
    changed = {**STAGES, "r1_zero": {**STAGES["r1_zero"], "max_steps": 1}}
    assert pipeline.main([*config(killed, changed), "--from", "r1_zero"]) == 0
    assert "<- base: changed" in capfd.readouterr().out
    assert (killed / "run" / "seed-0" / "r1_zero.1" / "final").is_dir()


@pytest.mark.normal
def test_rows_of_a_file_and_of_a_teacher_feed_the_tuning_behind_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gsm8k, problems = tmp_path / "gsm8k.jsonl", tmp_path / "problems.jsonl"
    gsm8k.write_text(json.dumps({"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}))
    problems.write_text(json.dumps({"prompt": "1 + 2?", "answer": "3"}))
    tuned = {"max_length": 128, "packing": True, "max_steps": 1, "per_device_train_batch_size": 1,
             "gradient_accumulation_steps": 1}  # fmt: skip
    with Server() as server:
        server.answer(lambda handler, _: handler.say("<think>1 + 2</think> <answer>3</answer>", "big"))
        stages = {
            "solutions": {"recipe": "gsm8k_traces", "dataset_name": f"gsm8k:{gsm8k}", "prompt_template": "chat"},
            "cold_start": {"recipe": "cold_start_sft", "dataset_name": "$solutions",
                           "model_name_or_path": str(TINY / "world_base"), **tuned},
            "teacher": {"recipe": "teacher_traces", "teacher_url": server.url, "teacher_model": "big",
                        "dataset_name": str(problems), "num_generations": 2},
            "student": {"recipe": "distill", "dataset_name": "$teacher",
                        "model_name_or_path": str(TINY / "world_student"), **tuned},
        }  # fmt: skip
        assert pipeline.main(config(tmp_path, stages)) == 0
        asked = len(server.requests)
        capfd.readouterr()
        assert pipeline.main(config(tmp_path, stages)) == 0
        assert capfd.readouterr().out.count(": done") == 4 and len(server.requests) == asked
    for rows, model in (("solutions", "cold_start"), ("teacher", "student")):
        lineage = json.loads((tmp_path / "run" / "seed-0" / model / "lineage.json").read_text())
        made = tmp_path / "run" / "seed-0" / rows
        assert lineage["inputs"]["data"] == {"name": str(made), "sha256": fingerprint_of(made)}


def test_a_launcher_s_other_processes_leave_the_work_to_the_first(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "RANK", "1")
    assert pipeline.main(config(tmp_path)) == 0 and not (tmp_path / "run").exists()


@pytest.mark.normal
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num_processes", "1"], None),
        (
            ["--num_processes", "1", "--cpu", "--mixed_precision", "bf16"],
            "ACCELERATE_MIXED_PRECISION=bf16, ACCELERATE_USE_CPU=True: not for the stages",
        ),
    ],
    ids=["plain", "told"],
)
def test_what_a_launcher_is_told_in_vain_is_said(flags: list[str], said: str | None, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", *flags, "-m", "recipes.pipeline"]
    nobody_s = {**os.environ, "HF_HOME": str(tmp_path)}  # no launch file of whoever runs the tests
    done = subprocess.run(
        [*launch, *config(tmp_path), "--dry_run"], cwd=ROOT, env=nobody_s, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("not for the stages") == (said is not None) and (said or "") in done.stdout


def test_several_processes_are_told_of_too() -> None:
    assert kept_back({"WORLD_SIZE": "2", "ACCELERATE_DYNAMO_BACKEND": "NO"}) == ["WORLD_SIZE=2"]
    assert kept_back({"WORLD_SIZE": "1"}) == []
