"""Shipped settings of the SFT stages on real rows: GSM8K's solutions, and the real small family without its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

from data.conversations import read_conversations
from grpo.monitor.metrics import read_metrics
from recipes import cold_start_sft, distill, distill_on_policy, gsm8k_traces, second_sft
from rewards.accuracy import judge
from rewards.format import is_well_formed
from tests.recipes import test_stage_configs as families
from tests.recipes.test_real_model_configs import (
    CUT,
    lora_flags,
    lora_parameters_by_hand,
    parameters_by_hand,
    qwen2_config,
    save_tokenizer,
)
from tests.recipes.test_sampling_configs import sample
from tests.recipes.test_sft_rows import CHATML
from tests.recipes.test_stage_configs import moved

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
QWEN = CONFIGS / "qwen2_5_1_5b"
STAGES = {
    "cold_start_sft": cold_start_sft,
    "second_sft": second_sft,
    "distill": distill,
    "distill_lora": distill,
}


def traces(shared_data: Path, folder: Path, *, template: str, rows: int) -> Path:
    """GSM8K's first solutions, by the documented command."""
    name = f"gsm8k:{shared_data / 'gsm8k_train.jsonl'}"
    argv = f"--dataset_name {name} --output_dir {folder} --prompt_template {template} --rows {rows}"
    assert gsm8k_traces.main(argv.split()) == 0
    return folder


@pytest.fixture(scope="module")
def cut_down(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two narrow layers and a small vocabulary, random weights, and the family's chat format."""
    folder = tmp_path_factory.mktemp("cut_down")
    tokenizer = save_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    Qwen2ForCausalLM(qwen2_config(**CUT, vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_one_update_of_the_family_on_real_rows(name: str, cut_down: Path, shared_data: Path, tmp_path: Path) -> None:
    rows, run_dir = traces(shared_data, tmp_path / "rows", template="chat", rows=2), tmp_path / "run"
    given = f"--config {QWEN / name}.yaml --model_name_or_path {cut_down} --dataset_name {rows} --dataset_config none"
    given += f" --output_dir {run_dir} --max_steps 1 --gradient_accumulation_steps 1 --warmup_ratio 0 --max_length 2048"
    assert STAGES[name].main(given.split()) == 0
    (line,) = read_metrics(run_dir)
    assert 5 < line["nll"] < 7 and line["grad_norm"] > 0  # ln 402 = 6.0
    assert moved(cut_down, run_dir / "final")
    after = AutoModelForCausalLM.from_pretrained(run_dir / "final")
    end = AutoTokenizer.from_pretrained(run_dir / "final").convert_tokens_to_ids("<|im_end|>")
    assert after.generation_config.eos_token_id[0] == end  # for whoever loads the folder


@pytest.mark.parametrize("name", ["cold_start_sft", "second_sft"])
def test_with_the_pages_flags_an_adapter_alone_is_trained(
    name: str, cut_down: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, run_dir = traces(shared_data, tmp_path / "rows", template="chat", rows=2), tmp_path / "run"
    given = f"--config {QWEN / name}.yaml --model_name_or_path {cut_down} --dataset_name {rows} --max_steps 1"
    assert STAGES[name].main([*given.split(), "--output_dir", str(run_dir), *lora_flags(name)]) == 0
    trained = 256 * 2 * (2 * (96 + 96) + 2 * (96 + 16) + 3 * (96 + 128))  # rank x layers x (inputs + outputs)
    assert f"training {trained:,} parameters" in capsys.readouterr().out
    assert moved(cut_down, run_dir / "final") == {
        key for key in AutoModelForCausalLM.from_pretrained(cut_down).state_dict() if "proj.weight" in key
    }


def test_rows_of_the_v3_family_teach_the_dense_student(cut_down: Path, shared_data: Path, tmp_path: Path) -> None:
    """Through the student's own tokenizer and chat format."""
    teacher = families.cut_down(tmp_path / "teacher", families.MOONLIGHT)
    AcceleratorState._reset_state()  # each stage has a process of its own elsewhere, and its own precision
    rows = sample("rejection_sampling", "deepseek_v3", teacher, shared_data, tmp_path) / "rows"
    AcceleratorState._reset_state()
    given = f"--config {QWEN / 'distill'}.yaml --model_name_or_path {cut_down} --dataset_name {rows}"
    given += f" --dataset_config null --output_dir {tmp_path / 'run'} --max_steps 1 --gradient_accumulation_steps 1"
    assert distill.main(given.split()) == 0
    (line,) = read_metrics(tmp_path / "run")
    assert 5 < line["nll"] < 7 and line["grad_norm"] > 0
    lineage = json.loads((tmp_path / "run" / "final" / "lineage.json").read_text())
    assert lineage["inputs"]["data"]["name"] == str(rows) and lineage["counts"]["rows kept"] > 8


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_one_on_policy_update_of_the_family(lora: bool, cut_down: Path, shared_data: Path, tmp_path: Path) -> None:
    """From a teacher whose embeddings are padded further, as those of the 7B are."""
    teacher, run_dir, rows = tmp_path / "teacher", tmp_path / "run", tmp_path / "rows.jsonl"
    shutil.copytree(cut_down, teacher, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    Qwen2ForCausalLM(qwen2_config(**CUT, vocab_size=530)).save_pretrained(teacher)
    lines = (shared_data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows.write_text("".join(lines[:4]), encoding="utf-8")
    given = f"--config {QWEN / 'distill_on_policy'}.yaml --model_name_or_path {cut_down} --output_dir {run_dir}"
    given += f" --teacher_model_name_or_path {teacher} --dataset_name gsm8k:{rows} --dataset_config none"
    given += " --max_steps 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --max_completion_length 8"
    assert distill_on_policy.main([*given.split(), *(lora_flags("distill_on_policy") if lora else [])]) == 0
    (line,) = read_metrics(run_dir)
    assert 0 < line["divergence"] < 2 and line["grad_norm"] > 0  # two random models
    assert all("proj.weight" in name for name in moved(cut_down, run_dir / "final")) is lora


def test_the_published_sizes_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(qwen2_config())
        assert sum(p.numel() for p in model.parameters()) == parameters_by_hand()
        adapter = distill.parse(["--config", str(QWEN / "distill_lora.yaml")]).config.adapter
        with_lora = get_peft_model(
            model, LoraConfig(r=adapter.lora_r, target_modules=adapter.lora_target_modules, task_type="CAUSAL_LM")
        )
    trained = sum(p.numel() for p in with_lora.parameters() if p.requires_grad)
    assert adapter.lora_r == 256 and trained == lora_parameters_by_hand(256)


def test_every_solution_of_gsm8k_is_right_and_well_formed_as_a_trace(shared_data: Path, tmp_path: Path) -> None:
    rows = list(read_conversations(str(traces(shared_data, tmp_path / "rows", template="r1_zero", rows=300))))
    assert len(rows) == 300 and "<<" not in "".join(row.completion for row in rows)
    assert all(is_well_formed(row.completion) for row in rows)
    assert all(judge(row.completion, row.columns["answer"]).correct for row in rows)


@pytest.mark.normal
def test_a_cold_start_on_gsm8ks_own_solutions(shared_data: Path, tiny_model: Path, tmp_path: Path) -> None:
    rows, run_dir = traces(shared_data, tmp_path / "rows", template="r1_zero", rows=8), tmp_path / "run"
    given = f"--config {CONFIGS / 'tiny_v3' / 'pipeline' / 'cold_start_sft.yaml'} --model_name_or_path {tiny_model}"
    given += f" --dataset_name {rows} --output_dir {run_dir} --max_length 1024 --max_steps 2 --learning_rate 5e-3"
    given += " --per_device_train_batch_size 1"
    assert cold_start_sft.main(given.split()) == 0
    lines = read_metrics(run_dir)
    assert len(lines) == 2 and lines[-1]["nll"] < lines[0]["nll"] - 0.1
