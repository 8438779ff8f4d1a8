"""Distillation: a dense student of another architecture learns from traces, or from its teacher on its own text."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from data.conversations import Conversation, ShardWriter
from data.order import problem_at
from data.problem import DataError, Problem
from data.templates import build_prompt
from grpo.checkpoint.state import Position
from grpo.config import AdapterConfig, ModelConfig
from grpo.config.parse import parse_run_config
from grpo.config.schedule import stages
from grpo.course import Course
from grpo.distributed import Dist
from grpo.monitor.metrics import describe, read_metrics
from grpo.policy.load import load_policy
from grpo.policy.tiny_dense import save_tiny_dense
from grpo.policy.tiny_v3 import build_tiny_v3
from grpo.sampling.choose import build_sampler
from grpo.setup import load_data
from recipes import distill, distill_on_policy
from recipes.distill_on_policy import frozen_teacher, problems_of
from recipes.distill_on_policy import parse as parse_on_policy
from recipes.tuning.on_policy_trainer import OnPolicyTrainer
from rewards.rubric import Rubric

SUMS = "{size: 120, seed: 1, heldout_share: 0.2, min_terms: 3, max_terms: 4, min_digits: 1, max_digits: 1}"
ONE = ["--dataset_name", "gym:chain_sum", "--dataset_kwargs", SUMS]
TWO = [
    "--dataset_mixture",
    f"[{{dataset_name: gym:chain_sum, dataset_kwargs: {SUMS}, weight: 1}}, "
    "{dataset_name: gym:gcd, dataset_kwargs: {size: 50, seed: 1, max_value: 40}, weight: 3}]",
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def student(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    return save_tiny_dense(tmp_path_factory.mktemp("student"), tokenizer=tokenizer)


def flags(student: Path, teacher: Path, run_dir: Path, more: str = "", data: list[str] = ONE) -> list[str]:
    given = f"--model_name_or_path {student} --teacher_model_name_or_path {teacher} --output_dir {run_dir} --seed 3 "
    given += "--prompt_template r1_zero --max_completion_length 12 "
    given += f"--per_device_train_batch_size 8 --learning_rate 5e-3 {more}"
    return [*given.split(), *data]


def test_a_student_tuned_on_traces_says_them_in_a_plain_pipeline_and_stops(student: Path, tmp_path: Path) -> None:
    """So template, end token and export are right: nothing of this project is left in the second half."""
    traces = {"What is 2 + 3?": "<think>2 + 3 = 5</think> <answer>5</answer>", "Say no.": "<think>no</think> No."}
    ShardWriter(tmp_path / "rows", conversational=True).write(
        [Conversation(id=q, prompt=build_prompt(q, template="chat"), completion=said) for q, said in traces.items()],
        state=None,
    )
    argv = f"--model_name_or_path {student} --dataset_name {tmp_path / 'rows'} --output_dir {tmp_path / 'run'} "
    argv += "--learning_rate 1e-2 --max_steps 40 --per_device_train_batch_size 2 --save_strategy no"
    assert distill.main(argv.split()) == 0

    speak = pipeline("text-generation", model=str(tmp_path / "run" / "final"), device="cpu")
    for question, said in traces.items():
        answer = speak([{"role": "user", "content": question}], do_sample=False, max_new_tokens=60)
        assert answer[0]["generated_text"][-1]["content"] == said


def by_hand(student: Path, teacher: Path, run_dir: Path) -> float:
    """The reverse KL of the first update, row by row and in full: sum over V of p log(p / q), mean over all tokens."""
    cfg = parse_on_policy(flags(student, teacher, run_dir)).config
    policy = load_policy(cfg.model, AdapterConfig(), device=CPU)
    problems = problems_of(cfg.data, policy.tokenizer).train
    mine = [problems[problem_at(place, len(problems), 3)] for place in range(8)]
    sampler = build_sampler(policy, cfg.sampling, seed=3, dist=Dist(), between_steps=lambda: None)
    models = policy.model.eval(), AutoModelForCausalLM.from_pretrained(teacher).eval()
    terms = []
    for group in sampler.sample(mine, positions=range(8), round_key=0):
        (rollout,) = group.rollouts
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
        with torch.no_grad():
            p, q = (
                model(input_ids=ids).logits[0, len(rollout.prompt_ids) - 1 : -1].log_softmax(-1) for model in models
            )
        terms += (p.exp() * (p - q)).sum(-1).tolist()
    return sum(terms) / len(terms)


def test_on_policy_the_loss_is_the_reverse_kl_on_the_students_own_text_and_falls(
    student: Path, tiny_base: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert distill_on_policy.main(flags(student, tiny_base, run_dir, "--max_steps 8 --save_strategy no")) == 0
    lines = read_metrics(run_dir)
    assert lines[0]["divergence"] == pytest.approx(by_hand(student, tiny_base, run_dir), rel=1e-4)
    assert lines[-1]["divergence"] < 0.9 * lines[0]["divergence"]
    assert all(describe(name) for line in lines for name in line.keys() - {"step", "time"})
    made = json.loads((run_dir / "final" / "lineage.json").read_text())
    assert made["stage"] == "distill_on_policy" and made["inputs"]["teacher"]["sha256"]
    said = pipeline("text-generation", model=str(run_dir / "final"), device="cpu")("1 + 2 =", max_new_tokens=3)
    assert said[0]["generated_text"].startswith("1 + 2 =")


@contextmanager
def asked() -> Iterator[list[list[Problem]]]:
    """The problems of every update that is sampled meanwhile."""
    updates, generate = [], OnPolicyTrainer._generate

    def noted(trainer: OnPolicyTrainer, prompts: list[int]) -> object:
        updates.append([trainer.problems[number] for number in prompts])
        return generate(trainer, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnPolicyTrainer, "_generate", noted)
        yield updates


def drawn_by_the_loop(model: Path, count: int) -> list[Problem]:
    """What GRPO would train on first, given the same sources and seed."""
    given = f"--model_name_or_path {model} --output_dir none --seed 3 --prompt_template r1_zero --reward_funcs gym"
    cfg = parse_run_config([*given.split(), *TWO]).config
    problems = load_data(cfg, AutoTokenizer.from_pretrained(model), Rubric(()))
    course = Course(problems=problems, stages=stages(cfg, 1), position=Position())
    return list(islice(course.problems_of(course.upcoming()), count))


def test_a_run_over_two_sources_draws_as_grpo_does_and_goes_on_from_a_checkpoint_as_if_unbroken(
    student: Path, tiny_base: Path, tmp_path: Path
) -> None:
    more = "--max_steps 5 --save_steps 3 --gradient_accumulation_steps 2 --per_device_train_batch_size 4"
    given = flags(student, tiny_base, tmp_path / "run", more, TWO)
    with asked() as updates:
        assert distill_on_policy.main(given) == 0
    assert all(5 <= Counter(problem.task for problem in update)["gcd"] <= 7 for update in updates)
    order = [problem for update in updates for problem in update]
    assert 29 <= Counter(problem.task for problem in order)["gcd"] <= 31  # 3 in 4 of 40
    assert order == drawn_by_the_loop(student, 40)
    made = json.loads((tmp_path / "run" / "lineage.json").read_text())
    assert [made["inputs"][f"problems {n}"]["name"] for n in (1, 2)] == ["gym:chain_sum", "gym:gcd"]

    whole = read_metrics(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-5")
    with asked() as again:
        assert distill_on_policy.main([*given, "--resume", "must"]) == 0
    assert again == updates[3:]
    for ours, theirs in zip(read_metrics(tmp_path / "run"), whole, strict=True):
        for name in theirs.keys() - {"time", "step_time"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_questions_need_no_gold_answers_unless_their_column_is_named(student: Path, tmp_path: Path) -> None:
    tokenizer, rows = AutoTokenizer.from_pretrained(student), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(6)))
    alone = ["--dataset_name", str(rows)]
    mixed = ["--dataset_mixture", f"[{{dataset_name: {rows}}}, {{dataset_name: gym:gcd, dataset_kwargs: {{size: 9}}}}]"]
    for data in (alone, mixed):
        cfg = parse_on_policy(flags(student, student, tmp_path, data=data)).config.data
        assert [problem.question for problem in problems_of(cfg, tokenizer).train[:6]] == [f"Say {n}" for n in range(6)]
    named = parse_on_policy(flags(student, student, tmp_path, "--dataset_answer_column answer", alone)).config.data
    with pytest.raises(DataError, match="no value in column 'answer'"):
        problems_of(named, tokenizer)


def test_padded_embeddings_of_a_larger_teacher_are_cut_and_those_of_a_smaller_one_refused(
    student: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for rows in (len(tokenizer), len(tokenizer) + 30):
        build_tiny_v3(tokenizer, seed=0, vocab_size=rows).save_pretrained(tmp_path / str(rows))
        tokenizer.save_pretrained(tmp_path / str(rows))
    small, large = (tmp_path / str(len(tokenizer) + more) for more in (0, 30))
    cfg = parse_on_policy(flags(student, large, tmp_path / "run")).config
    policy = load_policy(ModelConfig(model_name_or_path=str(student)), AdapterConfig(), device=CPU)
    teacher = frozen_teacher(cfg, policy, Dist())
    whole = AutoModelForCausalLM.from_pretrained(large)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(teacher(input_ids=ids).logits, whole(input_ids=ids).logits[..., : len(tokenizer)])
    assert distill_on_policy.main(flags(large, small, tmp_path / "other", "--max_steps 1")) == 2
    assert "it has no probability for the student's last ones" in capsys.readouterr().err


def test_what_cannot_be_distilled_on_policy_is_refused_before_any_work(
    student: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_tokens(["hello"])
    other = save_tiny_dense(tmp_path / "other", tokenizer=tokenizer)
    for argv, why in {
        (other, ""): "has other tokens than the student: 1 differ, 'hello' among them.*recipes.distill",
        (tiny_base, "--num_generations 4"): "num_generations: got 4; allowed: 1",
        (tmp_path / "nowhere", ""): "there is no such folder",
    }.items():
        assert distill_on_policy.main(flags(student, argv[0], tmp_path / "run", argv[1])) == 2
        assert re.search(why, capsys.readouterr().err, re.DOTALL)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_launch_that_shards_the_student_is_refused(
    student: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert distill_on_policy.main(flags(student, tiny_base, tmp_path / "run")) == 2
    assert "the launch file asks for FSDP; allowed here" in capsys.readouterr().err
