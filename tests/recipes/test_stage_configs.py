"""The recipes of the DeepSeek-V3 family and the RL stages of Qwen2.5-1.5B, without weights: the published architectures
on the meta device and one real row in a dry run, the family cut to two layers in one full step."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config

from data.conversations import Conversation, ShardWriter
from grpo.config import ModelConfig
from grpo.config.coerce import dump_yaml, load_yaml
from grpo.dry_run import meta_model
from grpo.monitor.metrics import read_metrics
from recipes import all_scenarios_rl, cold_start_sft, r1_zero, reasoning_rl, second_sft, train_preference_model
from tests.recipes import test_real_model_configs as qwen

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
# config.json of moonshotai/Moonlight-16B-A3B; of deepseek-ai/DeepSeek-V3-Base (transformers' defaults are its sizes).
MOONLIGHT = {
    "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 11264, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.446, "vocab_size": 163840, "max_position_embeddings": 8192,
}  # fmt: skip
DEEPSEEK_V3 = {"max_position_embeddings": 163840}
QWEN: dict[str, Any] = {}  # see qwen.qwen2_config
CUT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "intermediate_size": 96,
    "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RL = {
    "deepseek_v3/r1_zero": (r1_zero, MOONLIGHT),
    "deepseek_v3/r1_zero_671b": (r1_zero, DEEPSEEK_V3),
    "deepseek_v3/reasoning_rl": (reasoning_rl, MOONLIGHT),
    "deepseek_v3/all_scenarios_rl": (all_scenarios_rl, MOONLIGHT),
    "qwen2_5_1_5b/reasoning_rl": (reasoning_rl, QWEN),
    "qwen2_5_1_5b/all_scenarios_rl": (all_scenarios_rl, QWEN),
}
TUNED = {
    "deepseek_v3/cold_start_sft": (cold_start_sft, MOONLIGHT),
    "deepseek_v3/second_sft": (second_sft, MOONLIGHT),
    "deepseek_v3/train_preference_model": (train_preference_model, MOONLIGHT),
    "qwen2_5_1_5b/train_preference_model": (train_preference_model, QWEN),
}
GIB = 2**30


def save_config(folder: Path, sizes: dict[str, Any], **changes: Any) -> Any:
    """Sizes and a tokenizer with a chat template, no weights: whoever loads those fails."""
    tokenizer = qwen.save_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = qwen.qwen2_config(**changes) if sizes is QWEN else DeepseekV3Config(**{**sizes, **changes})
    config.save_pretrained(folder)
    return config


def parameters_by_hand(c: Any) -> int:
    """Embeddings and head; latent attention; a dense MLP in the first layers, then router, experts and shared ones."""
    if c.model_type == "qwen2":
        return qwen.parameters_by_hand()
    head, hidden = c.qk_nope_head_dim + c.qk_rope_head_dim, c.hidden_size
    queries = c.num_attention_heads * head
    attention = hidden * queries if c.q_lora_rank is None else c.q_lora_rank * (hidden + 1 + queries)
    attention += hidden * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank
    attention += c.num_attention_heads * (c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim) + c.v_head_dim * hidden)
    dense = 3 * hidden * c.intermediate_size
    experts = 3 * hidden * c.moe_intermediate_size * (c.n_routed_experts + c.n_shared_experts)
    sparse, first = experts + hidden * c.n_routed_experts, c.first_k_dense_replace
    layers = c.num_hidden_layers * (attention + 2 * hidden) + first * dense + (c.num_hidden_layers - first) * sparse
    return 2 * c.vocab_size * hidden + layers + hidden


@pytest.fixture(scope="module")
def gsm8k(shared_data: Path) -> list[dict[str, str]]:
    rows = (shared_data / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in rows[:4]]


@pytest.fixture
def on_disk(gsm8k: list[dict[str, str]], tiny_judge: Path, tmp_path: Path) -> Any:
    """A shipped recipe whose data sets are these rows and whose preference models are tiny; returns its new path."""
    tests = {"language": "python", "test_cases": [{"type": "stdin_stdout", "input": "1", "output": "2"}]}
    rows = [{"prompt": row["question"], "problem": row["question"], "problem_statement": row["question"],
             "verification_info": tests, "answer": row["answer"].split("#### ")[1]} for row in gsm8k]  # fmt: skip
    for split in ("train", "test"):
        path = tmp_path / f"rows_{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def write(name: str, **changes: Any) -> Path:
        keys = load_yaml((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        for source in keys.get("dataset_mixture", [keys]):
            if source["dataset_name"].startswith("gsm8k:"):
                source["task"] = "gsm8k"
            source["dataset_name"], source["dataset_train_split"] = str(tmp_path / "rows_{split}.jsonl"), "train"
        for line in keys.get("reward_funcs", []):
            if line["name"] == "preference_model":
                line["model_name_or_path"] = str(tiny_judge)
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_yaml({**keys, **changes}), encoding="utf-8")
        return path

    return write


@pytest.mark.normal
@pytest.mark.parametrize("name", RL)
def test_a_dry_run_at_the_published_sizes(
    name: str, on_disk: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, sizes = RL[name]
    config = save_config(tmp_path, sizes)
    weights = parameters_by_hand(config)
    billions = 1.54 if sizes is QWEN else 671.03 if sizes is DEEPSEEK_V3 else 15.96
    assert round(weights / 1e9, 2) == billions  # the cards: 1.54B, 671B and 16B
    assert stage.main(["--config", str(on_disk(name)), "--model_name_or_path", str(tmp_path), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "Natalia sold clips" in shown and "prompts over max_prompt_length" not in shown
    stated = {
        name.strip(): float(size) for name, size in re.findall(r"^ {10,}(\S.*?) {2,}([\d.]+) GiB$", shown, re.MULTILINE)
    }
    gib = weights / GIB
    expected = {"parameters (fp32)": 4, "gradients (fp32)": 4, "optimizer state (2 x fp32)": 8, "reference (fp32)": 4}
    assert {name: stated[name] for name in expected} == pytest.approx(
        {k: n * gib for k, n in expected.items()}, rel=0.01
    )
    assert sizes is QWEN or "16 per rollout, 512 rows each" in shown  # R1's rollout


@pytest.mark.parametrize("name", TUNED)
def test_the_tuned_stages_read_a_row_and_know_the_published_architecture(
    name: str, on_disk: Any, gsm8k: list[dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, sizes = TUNED[name]
    config = save_config(tmp_path, sizes)
    model = meta_model(ModelConfig(model_name_or_path=str(tmp_path)))
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == parameters_by_hand(config)
    path = write_rows(name, on_disk, gsm8k, tmp_path)
    assert stage.main(["--config", str(path), "--model_name_or_path", str(tmp_path), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert ("4 rows read, 4 pairs kept" if stage is train_preference_model else "Natalia sold clips") in shown


def write_rows(name: str, on_disk: Any, gsm8k: list[dict[str, str]], folder: Path) -> Path:
    """The rows that the stage before would make, of GSM8K's own solutions."""
    if name.endswith("train_preference_model"):
        (folder / "pairs.jsonl").write_text(
            "".join(
                json.dumps({"prompt": row["question"], "chosen": row["answer"], "rejected": f"{number} " * 40}) + "\n"
                for number, row in enumerate(gsm8k)
            )
        )
        return on_disk(
            name, dataset_name=str(folder / "pairs.jsonl"), dataset_train_split="train", dataset_test_split=None,
            balance_lengths=False,
        )  # fmt: skip
    rows = [
        Conversation(
            id=str(number),
            prompt=[{"role": "user", "content": row["question"]}],
            completion=f"<think>{row['answer'].split('####')[0]}</think> {row['answer'].split('#### ')[1]}",
        )
        for number, row in enumerate(gsm8k)
    ]
    ShardWriter(folder / "rows", conversational=True).write(rows, state=None)
    return on_disk(name, dataset_name=str(folder / "rows"))


def cut_down(folder: Path, sizes: dict[str, Any]) -> Path:
    """Two narrow layers, one of them with experts, and a small vocabulary; random weights."""
    folder.mkdir()
    own = {"n_group": 2, "topk_group": 1, "q_lora_rank": 24} if sizes is DEEPSEEK_V3 else {}
    cut = qwen.CUT if sizes is QWEN else {**CUT, **own, "first_k_dense_replace": 1}
    config = save_config(folder, sizes, **cut)
    config.vocab_size = len(AutoTokenizer.from_pretrained(folder))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def moved(before: Path, after: Path) -> set[str]:
    was, now = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (before, after))
    assert was.keys() == now.keys()
    return {name for name in was if not was[name].equal(now[name])}


@pytest.mark.normal
@pytest.mark.parametrize("name", RL)
def test_one_update_of_the_family(name: str, on_disk: Any, tmp_path: Path) -> None:
    model, run_dir = cut_down(tmp_path / "cut", RL[name][1]), tmp_path / "run"
    one_update(name, on_disk, model, run_dir)
    changed = moved(model, run_dir / "final")
    wanted = ("mlp.", "self_attn.") if RL[name][1] is QWEN else ("experts", "kv_b_proj")
    assert all(any(part in name for name in changed) for part in wanted)


@pytest.mark.normal
@pytest.mark.parametrize("stage", ["reasoning_rl", "all_scenarios_rl"])
def test_with_the_pages_flags_an_adapter_alone_is_trained(
    stage: str, on_disk: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a card of 24 GB, a preference model of the same size in fp32 beside it."""
    name, flags = f"qwen2_5_1_5b/{stage}", qwen.lora_flags(stage)
    save_config(tmp_path, QWEN)
    argv = ["--config", str(on_disk(name)), "--model_name_or_path", str(tmp_path), *flags, "--dry_run"]
    assert RL[name][0].main(argv) == 0
    shown = capsys.readouterr().out
    assert f"{qwen.lora_parameters_by_hand(16) / 1e6:.2f}M trained" in shown
    (peak,) = re.findall(r"^ +peak +([\d.]+) GiB$", shown, re.MULTILINE)
    assert float(peak) * GIB + 4 * qwen.parameters_by_hand() < 24e9
    model, run_dir = cut_down(tmp_path / "cut", QWEN), tmp_path / "run"
    one_update(name, on_disk, model, run_dir, flags)
    changed = moved(model, run_dir / "final")
    assert changed and all("proj.weight" in name for name in changed)


def one_update(name: str, on_disk: Any, model: Path, run_dir: Path, more: Sequence[str] = ()) -> None:
    """The shipped recipe on real rows, with a reward that random weights can earn."""
    keys = load_yaml(on_disk(name).read_text(encoding="utf-8"))
    shipped = keys.get("reward_funcs", ["accuracy", "format"])  # of the preset
    noise = {"name": "recipes.example_reward:terse", "weight": 0.1}  # random weights get nothing right
    path = on_disk(name, reward_funcs=[*shipped, noise])
    flags = "--problems_per_rollout 6 --num_generations 4 --num_minibatches 1 --max_completion_length 8 --max_steps 1"
    flags += f" --output_dir {run_dir} --model_name_or_path {model} --dtype float32 --check_rewards false"
    flags += " --eval_problems 2 --eval_samples 2"
    assert RL[name][0].main(["--config", str(path), *more, *flags.split()]) == 0
    update = next(line for line in read_metrics(run_dir) if "loss" in line)
    assert update["grad_norm"] > 0 and update["skipped_updates"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
def test_one_step_of_the_tuned_stages(name: str, on_disk: Any, gsm8k: list[dict[str, str]], tmp_path: Path) -> None:
    stage, sizes = TUNED[name]
    model, run_dir = cut_down(tmp_path / "cut", sizes), tmp_path / "run"
    path = write_rows(name, on_disk, gsm8k, tmp_path)
    flags = f"--output_dir {run_dir} --model_name_or_path {model} --dtype float32 --max_steps 1"
    assert stage.main(["--config", str(path), *flags.split()]) == 0
    assert [line["step"] for line in read_metrics(run_dir)] == [1] and read_metrics(run_dir)[0]["grad_norm"] > 0
    assert (run_dir / "final" / "config.json").exists() and (run_dir / "lineage.json").exists()
