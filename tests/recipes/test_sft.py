"""Supervised fine-tuning as a stage: it learns, packs exactly, resumes after a kill, refuses early, exports a model."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from data.conversations import Conversation, ShardWriter
from data.sources import load_problems
from grpo.config import AdapterConfig, ModelConfig
from grpo.distributed import Dist
from grpo.errors import ConfigError
from grpo.monitor.metrics import describe, read_metrics
from grpo.monitor.report import report_from_run
from grpo.policy.branching import by_rows
from grpo.policy.load import load_policy
from grpo.policy.tiny_dense import save_tiny_dense
from recipes import cold_start_sft, second_sft
from recipes.tiny_corpus import careful_solution
from recipes.tuning.packed_attention import PackedAttention, use_packed_attention
from recipes.tuning.sft import require_exact_packing

ROOT = Path(__file__).resolve().parents[2]
SUMS = {"size": 200, "seed": 1, "heldout_share": 0.2, "min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 1}
FLAGS = "--max_length 128 --per_device_train_batch_size 4 --learning_rate 1e-3 --seed 3"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Careful solutions of sums, as a stage before this one writes them."""
    folder = tmp_path_factory.mktemp("rows")
    problems = load_problems(
        "gym:chain_sum", split="train", kwargs=SUMS, template="r1_zero", filter_path="data.gym:running_totals_below_30"
    ).problems
    said = [careful_solution(problem.columns["gym_entry"]["metadata"]["expression"]) for problem in problems]
    ShardWriter(folder, conversational=False).write(
        [Conversation(id=p.id, prompt=p.prompt, completion=text) for p, text in zip(problems, said, strict=True)],
        state=None,
    )
    return folder


@pytest.fixture(scope="module")
def student(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of another architecture with the base's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    return save_tiny_dense(tmp_path_factory.mktemp("student"), tokenizer=tokenizer)


def words(model: Path, rows: Path | str, run_dir: Path, more: str = "") -> list[str]:
    given = f"--model_name_or_path {model} --dataset_name {rows} --output_dir {run_dir} {FLAGS} {more}"
    return given.split()


def tune(model: Path, rows: Path | str, run_dir: Path, more: str = "", *, stage: Any = cold_start_sft) -> int:
    return stage.main(words(model, rows, run_dir, more))


def losses(run_dir: Path) -> dict[int, float | None]:
    return {int(line["step"] or 0): line["nll"] for line in read_metrics(run_dir)}


@pytest.mark.parametrize("packing", ["true", "false"])
@pytest.mark.parametrize("kind", ["v3", "dense"])
def test_both_architectures_learn_their_rows_packed_or_not(
    kind: str, packing: str, tiny_model: Path, student: Path, rows: Path, tmp_path: Path
) -> None:
    model = tiny_model if kind == "v3" else student
    assert tune(model, rows, tmp_path / "run", f"--packing {packing} --max_steps 4 --learning_rate 5e-3") == 0
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["nll"] > 5.5 and lines[-1]["nll"] < lines[0]["nll"] - 0.5
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]  # ends at a tenth
    assert [line["learning_rate"] for line in lines] == pytest.approx([5e-3 * share for share in cosine])
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (model, tmp_path / "run" / "final"))
    assert type(after) is type(before)
    moved = [not p.equal(dict(after.named_parameters())[name]) for name, p in before.named_parameters()]
    assert all(moved)


@pytest.mark.parametrize("attention", ["sdpa", "packed_rows", "packed_rows, as on a GPU"])
@pytest.mark.parametrize("kind", ["v3", "dense"])
def test_rows_of_a_pack_are_computed_as_they_are_alone(
    kind: str, attention: str, tiny_base: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits within 2e-5, gradients within 1e-5 of the largest."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    where = ModelConfig(model_name_or_path=str(tiny_base if kind == "v3" else student))
    policy = load_policy(where, AdapterConfig(), device=torch.device("cpu"))
    model = policy.network.eval()
    singles = [list(range(start, start + size)) for start, size in ((5, 9), (40, 1), (100, 17))]
    pack = {"input_ids": [token for ids in singles for token in ids], "seq_lengths": [len(ids) for ids in singles]}
    inputs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([pack])
    inputs.pop("labels")

    def gradients(logits: list[torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        sum(part.logsumexp(-1).square().sum() for part in logits).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in singles]
    with torch.no_grad():
        leaking = model(**inputs, use_cache=True).logits[0].split(pack["seq_lengths"])
    assert not torch.allclose(leaking[2], alone[2], atol=1e-2)  # with a cache, transformers lets rows see each other
    expected = gradients(alone)
    if attention != "sdpa":
        use_packed_attention(policy, Dist(rank=0, world=1, device=torch.device("cpu")))
        assert model.config._attn_implementation == "packed_rows"
    if attention.endswith("GPU"):
        monkeypatch.setattr("grpo.policy.branching.by_stretches", by_rows)
    together = model(**inputs, use_cache=False).logits[0].split(pack["seq_lengths"])
    for packed, single in zip(together, alone, strict=True):
        torch.testing.assert_close(packed, single, atol=2e-5, rtol=1e-5)
    for got, right in zip(gradients(list(together)), expected, strict=True):
        torch.testing.assert_close(got, right, atol=1e-5 * max(right.abs().max().item(), 1e-3), rtol=1e-4)


@pytest.mark.parametrize("kind", ["v3", "dense"])
def test_packs_are_trained_as_with_a_mask(
    kind: str, tiny_base: Path, student: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, more = (tiny_base if kind == "v3" else student), "--packing true --max_steps 4"
    attend, calls = PackedAttention.__call__, []

    def counted(*given: Any, **keys: Any) -> Any:
        calls.append(given)
        return attend(*given, **keys)

    monkeypatch.setattr(PackedAttention, "__call__", counted)
    assert tune(model, rows, tmp_path / "masked", f"{more} --attn_implementation sdpa") == 0
    assert not calls
    assert tune(model, rows, tmp_path / "own", more) == 0
    layers = AutoConfig.from_pretrained(model).num_hidden_layers
    assert len(calls) == layers * (4 + 2)  # updates, and the two packs that are tried beforehand
    own, masked = (read_metrics(tmp_path / name) for name in ("own", "masked"))
    for key in ("nll", "grad_norm"):
        assert [line[key] for line in own] == pytest.approx([line[key] for line in masked], rel=1e-3)
    assert "packed_rows" not in (tmp_path / "own" / "final" / "config.json").read_text()


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_loss_of_held_out_rows_is_that_of_the_model(
    packing: str, student: Path, rows: Path, tmp_path: Path
) -> None:
    """Measured as the trainer goes, and by hand: mean over the tokens of rows that it never trained on."""
    written = [line for shard in sorted(rows.glob("*.parquet")) for line in pq.read_table(shard).to_pylist()]
    for split, part in (("train", written[:-8]), ("test", written[-8:])):
        lines = [json.dumps({"prompt": row["prompt"], "completion": row["completion"]}) for row in part]
        (tmp_path / f"sums_{split}.jsonl").write_text("\n".join(lines) + "\n")
    more = f"--packing {packing} --dataset_test_split test --eval_strategy steps --eval_steps 2 --max_steps 3"
    more += " --per_device_train_batch_size 8"  # all in one batch
    assert tune(student, tmp_path / "sums_{split}.jsonl", tmp_path / "run", more) == 0
    lines = read_metrics(tmp_path / "run")
    measured = [line for line in lines if "eval/nll" in line]
    assert [line["step"] for line in measured] == [2, 3] and [line["step"] for line in lines] == [1, 2, 2, 3, 3]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").eval()
    tokenizer = AutoTokenizer.from_pretrained(student)
    found: list[torch.Tensor] = []
    for row in written[-8:]:
        prompt, said = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
        ids = torch.tensor([[*prompt, *said, tokenizer.eos_token_id]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(-logprobs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0])
    assert measured[-1]["eval/nll"] == pytest.approx(torch.cat(found).mean().item(), rel=1e-4)
    assert "held out" in (tmp_path / "run" / "report.html").read_text()


def test_packing_is_refused_where_rows_would_see_each_other(
    tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    policy = load_policy(ModelConfig(model_name_or_path=str(tiny_base)), AdapterConfig(), device=torch.device("cpu"))
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    main = Dist(rank=0, world=2, device=torch.device("cpu"))
    require_exact_packing(policy, collate, main)

    def blind(examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"input_ids": collate(examples)["input_ids"], "labels": None}  # what a kernel without positions sees

    with pytest.raises(ConfigError, match=r"'sdpa' packed rows of this model see each other.*set `packing: false`"):
        require_exact_packing(policy, blind, main)
    assert not capsys.readouterr().out
    sharded = replace(policy, device=torch.device("meta"))
    for dist in (main, replace(main, rank=1)):
        require_exact_packing(sharded, blind, dist)
    assert capsys.readouterr().out.count("was not tried") == 1


def test_the_run_folder_is_like_that_of_other_runs(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert tune(tiny_base, rows, run_dir, "--max_steps 2") == 0
    page = report_from_run(run_dir).read_text()
    assert "Loss of a token" in page and "negative log-likelihood" in page and "max_length" in page
    assert all(describe(name) for line in read_metrics(run_dir) for name in line.keys() - {"step", "time"})
    made = json.loads((run_dir / "lineage.json").read_text())
    assert made["stage"] == "cold_start_sft" and made["inputs"]["model"]["name"] == str(tiny_base)
    assert made["inputs"]["data"]["sha256"] and made["counts"]["rows kept"] == made["counts"]["rows"] > 100
    assert made["config"]["learning_rate"] == 1e-3 and made["config"]["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert json.loads((run_dir / "final" / "lineage.json").read_text()) == made
    again = cold_start_sft.main(["--config", str(run_dir / "config.yaml"), "--output_dir", str(tmp_path / "again")])
    assert again == 0 and losses(tmp_path / "again") == losses(run_dir)


@pytest.mark.normal
def test_a_killed_run_goes_on_exactly(
    tiny_base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Across the end of an epoch, so that the order of the rows has to be found again, too."""
    more = "--packing true --max_steps 16 --save_steps 3"
    assert tune(tiny_base, rows, tmp_path / "whole", more) == 0
    argv = words(tiny_base, rows, tmp_path / "killed", more)
    killed = subprocess.Popen(
        [sys.executable, "-m", "recipes.cold_start_sft", *argv],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while max(losses(tmp_path / "killed"), default=0) < 10 and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    torn = tmp_path / "killed" / "checkpoint-15"  # as a kill in the middle of a save leaves it
    torn.mkdir(exist_ok=True)
    (torn / "trainer_state.json").write_text('{"global_step": 1')
    assert tune(tiny_base, rows, tmp_path / "killed", more + " --resume must") == 0
    assert "cut off while it was written" in capsys.readouterr().out
    whole, resumed = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "killed")
    assert whole[-1]["epoch"] > 1.2
    for ours, theirs in zip(resumed, whole, strict=True):
        assert [ours[name] for name in ("step", "nll", "grad_norm", "learning_rate", "epoch")] == pytest.approx(
            [theirs[name] for name in ("step", "nll", "grad_norm", "learning_rate", "epoch")], rel=1e-6
        )
    ends = [AutoModelForCausalLM.from_pretrained(tmp_path / name / "final") for name in ("whole", "killed")]
    for one, other in zip(*(model.parameters() for model in ends), strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)


def test_a_resume_with_other_settings_or_rows_is_refused(
    tiny_base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tiny_base, rows, tmp_path / "run", "--max_steps 2") == 0
    for more, why in {
        "--max_steps 2": "ConfigError: .* already holds a run: set `resume: auto`",
        "--max_steps 3 --resume auto": "CheckpointError: .*max_steps: 2 then, now 3",
        "--max_steps 2 --resume auto --long_rows truncate": "tokens: '[0-9a-f]+.arrow' then",
    }.items():
        capsys.readouterr()
        assert tune(tiny_base, rows, tmp_path / "run", more) == 2
        assert re.search(why, capsys.readouterr().err, re.DOTALL)
    assert tune(tiny_base, rows, tmp_path / "fresh", "--resume must") == 2
    assert tune(tiny_base, rows, tmp_path / "run", "--max_steps 2 --resume auto --logging_steps 2") == 0


def test_a_run_that_never_began_leaves_its_folder_free(
    student: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only the trainer itself refuses, once it has the weights."""

    def refuses(*_: Any) -> None:
        raise ConfigError("no such trainer")

    with monkeypatch.context() as changed:
        changed.setattr("recipes.tuning.sft.require_exact_packing", refuses)
        assert tune(student, rows, tmp_path / "run", "--max_steps 1 --packing true") == 2
    assert tune(student, rows, tmp_path / "run", "--max_steps 1 --packing true") == 0


def broken_models(folder: Path, v3: Path, dense: Path) -> dict[Path, str]:
    """Models that cannot be tuned -> what is said of them."""
    named = {name: folder / name for name in ("encoder", "mixed", "short")}
    for name, path in named.items():
        shutil.copytree(v3 if name != "short" else dense, path)
    (named["encoder"] / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    shutil.copy(dense / "config.json", named["mixed"] / "config.json")
    config = json.loads((dense / "config.json").read_text()) | {"vocab_size": 100}
    (named["short"] / "config.json").write_text(json.dumps(config))
    return {
        named["encoder"]: "is a clip_vision_model, which is no causal language model",
        named["mixed"]: "lack [0-9]+ that its config.json asks for.*another architecture",
        named["short"]: "has 100 embeddings, its tokenizer 466 tokens",
        folder / "nowhere": "there is no such folder",
    }


def test_a_model_that_cannot_be_tuned_is_named(
    tiny_base: Path, student: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, why in broken_models(tmp_path, tiny_base, student).items():
        assert tune(model, rows, tmp_path / "run") == 2
        assert re.search(why, capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "Q", "text": "A"}, "line 1: no conversation .*Its columns are prompt, text; needed"),
        ({"prompt": "Q", "completion": ""}, "no row is left to train on. 1 rows: 1 left out: empty"),
        ({"prompt": "Q" * 300, "completion": "A"}, "1 left out: the prompt alone is longer than max_length"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_named_before_the_weights_are_loaded(
    row: dict[str, str], why: str, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_base, model, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert tune(model, tmp_path / "rows.jsonl", tmp_path / "run") == 2
    assert re.search(why, capsys.readouterr().err)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_second_sft_starts_from_the_base(
    tiny_base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cold, second = tmp_path / "cold", tmp_path / "second"
    assert tune(tiny_base, rows, cold, "--max_steps 1") == 0
    for name in ("final", "checkpoint-1"):
        assert tune(cold / name, rows, second, "--max_steps 1", stage=second_sft) == 2
        assert f"was made by cold_start_sft from {tiny_base}" in capsys.readouterr().err
    assert tune(cold / "final", rows, second, "--max_steps 1 --allow_tuned_start", stage=second_sft) == 0
    assert tune(tiny_base, rows, tmp_path / "third", "--max_steps 1", stage=second_sft) == 0


def test_lora_goes_on_from_its_adapter_and_ends_in_a_plain_model(student: Path, rows: Path, tmp_path: Path) -> None:
    more = "--use_peft --lora_r 4 --gradient_checkpointing true --max_steps 4 --save_steps 2"
    assert tune(student, rows, tmp_path / "run", more) == 0
    whole = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert tune(student, rows, tmp_path / "run", more + " --resume must") == 0
    assert losses(tmp_path / "run") == pytest.approx(whole, rel=1e-6)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (student, tmp_path / "run" / "final"))
    was, now = before.state_dict(), after.state_dict()
    assert was.keys() == now.keys()
    assert all(was[name].equal(now[name]) == ("proj" not in name) for name in was)


def test_a_dry_run_reads_the_rows_and_stops(
    tiny_base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tiny_base, rows, tmp_path / "run", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert re.search(r"(\d+) rows: \1 kept; .* tokens, .* of them trained on, longest row \d+; max_length 128", shown)
    assert "Assistant:\n-->\n<think>" in shown and "</answer><eos>" in shown
    assert not list(tmp_path.glob("run/checkpoint-*")) and not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    more = "--packing true --max_steps 4 --save_strategy no"
    assert tune(tiny_base, rows, tmp_path / "one", more) == 0
    launcher = [
        str(Path(sys.executable).parent / "accelerate"),
        "launch",
        "--config_file",
        "recipes/accelerate/ddp.yaml",
    ]
    argv = words(tiny_base, rows, tmp_path / "two", more + " --per_device_train_batch_size 2")
    subprocess.run([*launcher, "-m", "recipes.cold_start_sft", *argv], cwd=ROOT, check=True, timeout=600)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
