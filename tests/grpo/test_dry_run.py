"""`--dry_run` on a folder that holds no weights at all, and its numbers against measured ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.problem import Problem
from grpo.config import AdapterConfig, RunConfig
from grpo.config.parse import ParsedRun, build, parse_run_config
from grpo.dry_run import dry_run, estimate, meta_model
from grpo.errors import ConfigError, DataError
from grpo.plan import ModelShape, Plan, make_plan, plan_lines, shape_of
from grpo.policy.tiny_v3 import build_tokenizer, tiny_v3_config

Parse = Callable[..., ParsedRun]
SHAPE = ModelShape(
    kind="Test", parameters=1000, trainable=1000, layers=2, hidden=10, vocabulary=100, cache_values=2 * 24
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config and tokenizer, no weights: whoever tries to load them fails."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_v3_config(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def parse(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parse:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["--model_name_or_path", str(model_folder), "--dataset_name", str(tmp_path / "rows.jsonl")]
    base += ["--output_dir", str(tmp_path / "run"), "--reward_funcs", "accuracy", "format", "--dry_run"]
    return lambda *flags: parse_run_config([*base, *flags])


def test_everything_is_shown_nothing_is_loaded_and_nothing_written(
    parse: Parse, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    flags = "--preset r1_zero --torch_dtype float32 --load_in_4bit --log_level info --max_completion_length 256"
    parsed = parse(*flags.split())
    dry_run(parsed.config, parsed.report)
    shown = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    for text in (
        "translated:\n  torch_dtype -> dtype: float32",
        "harmless here:\n  log_level: ",
        "not yet:\n  load_in_4bit waits for quantised training",
        "preset r1_zero: beta = 0.001 (",
        "learning_rate: 3.0e-06",
        "40 rows read, 40 problems kept",
        "</answer>. User: What is 0 + 1?. Assistant:\n",
        "gold answer '1'\n",
        "stop tokens: 2 '<eos>'; stop strings: none",
        "answer '8' -> reward 2 (accuracy 1.0, format 1.0)",
        "DeepseekV3ForCausalLM: 267.1k parameters, 267.1k trained",
        "512 problems x 16 completions = 8192 rows",
        "16 per rollout, 512 rows each; 10400 in all, from 650 rollouts",
        "480 bytes for a token of context",  # (32 + 8) numbers of 4 bytes in each of three layers
        "KV cache",
        "peak",
    ):
        assert text in shown, f"{text!r} is missing from:\n{shown}"
    assert "WARNING" not in shown


def test_chat_prompts_are_rendered_through_the_template(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = parse("--system_prompt", "Be brief.", "--stop_strings", "</answer>")
    dry_run(parsed.config, parsed.report)
    shown = capsys.readouterr().out
    assert "Be brief.\n\nUser: What is 0 + 1?\n\nAssistant:\n" in shown
    assert "stop strings: ['</answer>']" in shown


def test_a_gold_answer_that_no_reward_accepts_is_a_warning(
    parse: Parse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strict_reward.py").write_text(
        "from rewards.reward import Reward\n"
        "def judge(completions, answer, **_):\n"
        "    verdicts = {'2': Reward(score=0.0, correct=False), '3': None}\n"
        "    return [verdicts.get(gold, Reward(score=1.0, correct=True)) for gold in answer]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    parsed = parse("--reward_funcs", "strict_reward:judge")
    dry_run(parsed.config, parsed.report)
    shown = capsys.readouterr().out
    assert "answer '2' -> reward 0 (judge 0.0)" in shown
    assert "answer '3' -> reward nan (judge None)" in shown
    assert "ERROR: the gold answer is judged wrong in " in shown
    assert "ERROR: no reward can judge the gold answer of " in shown


def test_rewards_that_are_refused_do_not_stop_it(parse: Parse, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = parse("--reward_funcs", "cf_code", "format", "--reward_weights", "1.0", "0.5")
    dry_run(parsed.config, parsed.report)
    shown = capsys.readouterr().out
    assert "reward_funcs waits for cf_code: its programs are judged by a service outside" in shown
    assert "-> reward 0.5 (format 1.0)" in shown


def test_bad_data_is_an_error_as_in_a_real_run(parse: Parse, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "no answer"}\n')
    parsed = parse()
    with pytest.raises(DataError, match="line 1"):
        dry_run(parsed.config, parsed.report)


def test_a_model_that_is_not_there_is_an_error_of_ours(parse: Parse, tmp_path: Path) -> None:
    parsed = parse("--model_name_or_path", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"model_name_or_path: got .*nowhere"):
        dry_run(parsed.config, parsed.report)


def plan_of(shape: ModelShape = SHAPE, *, num_processes: int = 1, bf16: bool = False, **values: Any) -> Plan:
    minimal = {"model_name_or_path": "m", "dataset_name": "d", "reward_funcs": ["accuracy"], "output_dir": "o"}
    cfg = build(RunConfig, minimal | values)
    lengths = [10, 20, 30]
    return make_plan(cfg, shape, lengths, total_updates=100, num_processes=num_processes, bf16=bf16)


def test_batch_arithmetic_by_hand() -> None:
    keys = {
        "problems_per_rollout": 5, "num_generations": 4, "max_completion_length": 70, "num_minibatches": 3,
        "num_iterations": 2, "max_tokens_per_microbatch": 350, "rows_per_forward": 8, "beta": 0.1, "update": "padded",
        "sampler": "reference",
    }  # fmt: skip
    plan = plan_of(**keys)
    assert (plan.rows, plan.rows_per_update, plan.updates_per_rollout) == (20, 7, 6)
    assert plan.rollouts == 17  # 100 updates, 6 from each
    assert (plan.mean_prompt, plan.longest_prompt, plan.completion_tokens) == (20, 30, 1400)
    assert (plan.generate_calls, plan.decode_steps) == (3, 210)
    # Rows of 30 + 70 tokens, three to a forward: 7 forwards over all rows, for the old and the reference log-probs.
    assert plan.scoring_forwards == 14
    assert plan.update_forwards == 6 * 3
    # Packed: a group of 30 + 4 x 70 tokens to a forward; with less room, three rows of it and then one.
    packed = plan_of(**keys | {"update": "packed"})
    assert (packed.scoring_forwards, packed.update_forwards) == (2 * 5, 6 * 2)
    less = plan_of(**keys | {"update": "packed", "max_tokens_per_microbatch": 250})
    assert (less.scoring_forwards, less.update_forwards) == (2 * 5 * 2, 6 * 2 * 2)


def test_old_and_reference_logprobs_cost_nothing_where_they_are_not_needed() -> None:
    assert plan_of().scoring_forwards == 0
    assert plan_of(beta=0.1).scoring_forwards == plan_of(num_minibatches=2).scoring_forwards > 0


def test_two_processes_share_the_rows() -> None:
    keys = {"sampler": "reference", "rows_per_forward": 64}
    one, two = plan_of(**keys), plan_of(**keys, num_processes=2)
    assert (one.generate_calls, two.generate_calls) == (8, 4)
    assert one.rows == two.rows


def test_memory_by_hand() -> None:
    plan = plan_of(beta=0.1, max_completion_length=70, rows_per_forward=8, bf16=True)
    assert plan.memory == {
        "parameters (fp32)": 4000,
        "gradients (fp32)": 4000,
        "optimizer state (2 x fp32)": 8000,
        "bf16 copies of the weights": 2000,
        "reference (fp32)": 4000,
    }
    rows, prompts = 512, 2 * 512 // 16  # all in flight; twice the prompts that full groups need
    assert plan.cache_bytes == 2 * 48
    assert plan.while_sampling["KV cache"] == 2 * 48 * (rows * 70 + prompts * 30)
    slow = plan_of(max_completion_length=70, rows_per_forward=8, bf16=True, sampler="reference")
    assert slow.while_sampling["KV cache"] == 2 * 48 * 8 * 100
    assert plan.peak_memory == 22000 + sum(plan.while_updating.values())
    less = plan_of(beta=0.1, max_completion_length=70, bf16=True, gradient_checkpointing=True)
    assert less.while_updating["activations"] < plan.while_updating["activations"]
    assert "reference (fp32)" not in plan_of().memory


def test_standing_memory_is_what_torch_holds(model_folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder)).float()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    plan = plan_of(shape_of(model, AdapterConfig()))

    def size(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    assert plan.memory["parameters (fp32)"] == size(model.parameters())
    assert plan.memory["gradients (fp32)"] == size(p.grad for p in model.parameters())
    moments = size(t for state in optimizer.state.values() for t in state.values() if t.dim())
    assert plan.memory["optimizer state (2 x fp32)"] == moments


def tiny_qwen(**changes: Any) -> Any:
    from transformers import Qwen3Config

    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)  # noqa: C408
    return Qwen3Config(**sizes | {"num_key_value_heads": 2, "head_dim": 16} | changes)


@pytest.mark.parametrize("family", ["v3", "qwen", "qwen without grouping"])
def test_cache_size_is_what_transformers_keeps(family: str, model_folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    groups = {"num_key_value_heads": 4} if family.endswith("grouping") else {}
    config = AutoConfig.from_pretrained(model_folder) if family == "v3" else tiny_qwen(**groups)
    model = AutoModelForCausalLM.from_config(config).float()
    rows, length = 3, 7
    cache = model(torch.ones((rows, length), dtype=torch.int64), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert shape_of(model, AdapterConfig()).cache_values * rows * length == kept


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], "o_proj"])
@pytest.mark.parametrize("tied", [True, False])
def test_lora_size_is_what_peft_adds(targets: str | list[str], tied: bool) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_qwen(tie_word_embeddings=tied))
    expected = shape_of(model, AdapterConfig(use_peft=True, lora_r=3, lora_target_modules=targets)).trainable
    names = [targets] if targets == "o_proj" else targets
    adapted = get_peft_model(model, LoraConfig(r=3, target_modules=names, task_type="CAUSAL_LM"))
    assert expected == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_large_model_costs_nothing_on_the_meta_device(tmp_path: Path) -> None:
    from transformers import DeepseekV3Config

    DeepseekV3Config(num_hidden_layers=4, architectures=["DeepseekV3ForCausalLM"]).save_pretrained(tmp_path)
    cfg = build(
        RunConfig,
        {"model_name_or_path": str(tmp_path), "dataset_name": "d", "reward_funcs": ["accuracy"], "output_dir": "o"},
    )
    model = meta_model(cfg.model)
    shape = shape_of(model, cfg.adapter)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert shape.parameters > 10**10 and shape.cache_values == 4 * (512 + 64)  # V3: 576 values per token and layer
    problems = [Problem(id=str(i), question="q", answer="1", prompt="What?") for i in range(40)]
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer("What?")["input_ids"])] * 40
    plan = make_plan(cfg, shape, lengths, total_updates=2, bf16=torch.cuda.is_available())  # 40 problems, 32 at a time
    assert estimate(cfg, model, problems, tokenizer) == (plan, shape)
    lines = plan_lines(plan, shape, cfg)
    assert "B parameters" in lines[0] and "GiB" in lines[-1]
