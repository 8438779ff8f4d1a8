"""The recipes for a real small model, without its weights: published sizes in a dry run, the family in an update."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2TokenizerFast

from data.templates import R1_ZERO_TEMPLATE
from grpo.config.coerce import dump_yaml
from grpo.monitor.metrics import read_metrics
from grpo.packing import LOGITS_PER_CHUNK
from recipes import evaluate, pipeline, r1_zero
from recipes.asking.asked import entries, name_of
from tests.house_rules.pages import TEXT

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes" / "configs"
FULL, LORA = (CONFIGS / "qwen2_5_1_5b" / f"{name}.yaml" for name in ("r1_zero", "r1_zero_lora"))
OWN_DATA = CONFIGS / "own_data" / "r1_zero.yaml"
# Qwen2.5 technical report (arXiv 2412.15115), table 1, and the config.json of Qwen/Qwen2.5-1.5B.
HIDDEN, LAYERS, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = 1536, 28, 12, 2, 8960, 151936
KEY_VALUE = HIDDEN // HEADS * KV_HEADS  # width of the keys, and of the values, of a token
CUT = {"hidden_size": 96, "num_hidden_layers": 2, "intermediate_size": 128}  # the same 12 heads on 2
GIB = 2**30


def save_tokenizer(folder: Path) -> Qwen2TokenizerFast:
    """Qwen2's own tokenizer class with a vocabulary of a few hundred byte pairs."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([R1_ZERO_TEMPLATE] * 4, vocab_size=400, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = Qwen2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def qwen2_config(**changes: int) -> Qwen2Config:
    sizes = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY,
    }
    return Qwen2Config(**{**sizes, **changes}, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes and tokenizer, no weights: whoever loads those fails."""
    folder = tmp_path_factory.mktemp("published")
    save_tokenizer(folder)
    qwen2_config().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cut_down(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two narrow layers and a small vocabulary, random weights."""
    folder = tmp_path_factory.mktemp("cut_down")
    tokenizer = save_tokenizer(folder)
    Qwen2ForCausalLM(qwen2_config(**CUT, vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


@pytest.fixture
def gsm8k(shared_data: Path, tmp_path: Path) -> str:
    """The first real rows of both splits, as `dataset_name`."""
    for split in ("train", "test"):
        rows = (shared_data / f"gsm8k_{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"rows_{split}.jsonl").write_text("".join(rows[:4]), encoding="utf-8")
    return f"gsm8k:{tmp_path}/rows_{{split}}.jsonl"


def lora_flags(stage: str) -> list[str]:
    """What the recipes' page says makes the stage's file train an adapter."""
    section = TEXT["recipes/README.md"].partition("\n### LoRA\n")[2].partition("\n### ")[0]
    (row,) = (line for line in section.splitlines() if re.search(rf"^\|.*`{stage}`.*`--use_peft", line))
    return re.findall("`(--use_peft [^`]*)`", row)[0].split()


def parameters_by_hand() -> int:
    """Tied embeddings; attention with biases on queries, keys and values; three MLP matrices; RMS norms."""
    attention = HIDDEN * (HIDDEN + 1) + 2 * KEY_VALUE * (HIDDEN + 1) + HIDDEN * HIDDEN
    layer = attention + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN
    return VOCABULARY * HIDDEN + LAYERS * layer + HIDDEN


def lora_parameters_by_hand(rank: int) -> int:
    """rank x (inputs + outputs) of the seven matrices of a layer."""
    attention = 2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KEY_VALUE)
    return LAYERS * rank * (attention + 3 * (HIDDEN + INTERMEDIATE))


@pytest.mark.parametrize(("config", "trained", "most"), [(FULL, None, 38), (LORA, 16, 15)], ids=["full", "lora"])
def test_a_dry_run_at_the_published_sizes(
    config: Path, trained: int | None, most: int, published: Path, gsm8k: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = parameters_by_hand()
    learned = lora_parameters_by_hand(trained) if trained else weights
    assert weights == 1_543_714_304  # the model card: 1.54B, 1.31B of them not embeddings
    argv = ["--config", str(config), "--model_name_or_path", str(published), "--dataset_name", gsm8k, "--dry_run"]
    assert r1_zero.main(argv) == 0

    shown = capsys.readouterr().out
    assert "WARNING" not in shown and "prompts over max_prompt_length" not in shown
    assert "Natalia sold clips" in shown and "gold answer '72'" in shown
    assert "reward 1.1 (accuracy 1.0, format 1.0)" in shown
    expected = {
        "parameters (fp32)": 4 * weights,
        "gradients (fp32)": 4 * learned,
        "optimizer state (2 x fp32)": 8 * learned,
        "bf16 copies of the weights": 2 * weights,
        "logits of a micro-batch": 3 * 4 * LOGITS_PER_CHUNK,  # fewer than those of the whole micro-batch
    }
    stated = {
        name.strip(): float(size) * {"GiB": GIB, "MiB": 2**20}[unit]
        for name, size, unit in re.findall(r"^ {10,}(\S.*?) {2,}([\d.]+) (GiB|MiB)$", shown, re.MULTILINE)
    }
    assert {name: stated[name] for name in expected} == pytest.approx(expected, rel=0.01, abs=0.006 * GIB)
    cache = 2 * 128 * (512 + 1024) * LAYERS * 2 * KEY_VALUE  # bf16 keys and values of 128 rows at full length
    assert 0.7 * cache < stated["KV cache"] <= 1.01 * cache
    assert sum(expected.values()) < 1.02 * stated["peak"] and stated["peak"] < most * GIB


@pytest.mark.parametrize("config", [FULL, LORA, OWN_DATA], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_one_update_of_the_family(config: Path, cut_down: Path, gsm8k: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    rewards = "[{name: accuracy, require_format: true}, format, {name: 'recipes.example_reward:terse', weight: 0.1}]"
    flags = (
        f"--problems_per_rollout 2 --num_generations 4 --max_completion_length 8 --max_steps 1 --output_dir {run_dir}"
    )
    flags += f" --model_name_or_path {cut_down} --dataset_name {gsm8k} --eval_samples 2 --eval_problems 2"
    assert r1_zero.main(["--config", str(config), *flags.split(), "--reward_funcs", rewards]) == 0

    update = next(line for line in read_metrics(run_dir) if "loss" in line)
    assert update["grad_norm"] > 0 and update["skipped_updates"] == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (cut_down, run_dir / "final"))
    assert type(after) is Qwen2ForCausalLM  # LoRA merged
    was, now = before.state_dict(), after.state_dict()
    moved = {name for name in was if not was[name].equal(now[name])}
    assert was.keys() == now.keys()
    assert all((name in moved) is (config != LORA or "proj.weight" in name) for name in was if "bias" not in name)


QWEN_BASE, MOONLIGHT = "Qwen2.5-1.5B", "Moonlight-16B-A3B"
FED: dict[str, dict[str, str]] = {  # what feeds each stage, before the evaluations
    "qwen2_5_1_5b": {
        "r1_zero": QWEN_BASE, "make_cold_start": "r1_zero", "cold_start_sft": f"{QWEN_BASE}, make_cold_start",
        "reasoning_rl": "cold_start_sft", "rejection_sampling": "reasoning_rl",
        "second_sft": f"{QWEN_BASE}, rejection_sampling", "preference": "second_sft",
        "all_scenarios_rl": "second_sft, preference", "distill": QWEN_BASE,
        "distill_on_policy": "Qwen2.5-7B-Instruct, distill",
    },
    "deepseek_v3": {
        "r1_zero": MOONLIGHT, "make_cold_start": "r1_zero", "cold_start_sft": f"{MOONLIGHT}, make_cold_start",
        "reasoning_rl": "cold_start_sft", "rejection_sampling": "reasoning_rl",
        "second_sft": f"{MOONLIGHT}, rejection_sampling", "helpfulness": "second_sft", "harmlessness": "second_sft",
        "all_scenarios_rl": "second_sft, helpfulness, harmlessness", "distill": f"{QWEN_BASE}, rejection_sampling",
        "student_rl": QWEN_BASE,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", FED)
def test_the_chain_of_the_family_is_read_to_its_last_stage(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every recipe takes its keys, what feeds what is what R1 did, and the evaluations ask what the columns show."""
    path = CONFIGS / family / "pipeline.yaml"
    assert pipeline.main(["--config", str(path), "--output_dir", str(tmp_path), "--dry_run"]) == 0
    shown = capsys.readouterr().out
    feeds = dict(re.findall(r"\d: (\w+) \(\w+\)(?: <- ([^:]*))?:", shown))
    assert {name: fed for name, fed in feeds.items() if not name.startswith("evaluate_")} == FED[family]
    cfg = pipeline.parse(["--config", str(path)])
    rows = [row for table in cfg.tables.values() for row in table]
    judge = "preference" if family == "qwen2_5_1_5b" else "helpfulness"
    assert feeds["evaluate_dev2"] == f"reasoning_rl, {judge}" and not list(tmp_path.iterdir())
    assert len(feeds) == len(FED[family]) + len(set(rows))
    asked = {name: entries(evaluation(cfg, name, tmp_path).data) for name in ("evaluate_base", "evaluate_dev2")}
    for one in asked.values():
        assert {name for column in cfg.columns.values() for name in column["benchmarks"]} == {name_of(e) for e in one}
    assert [e.prompt_template for e in asked["evaluate_dev2"]] == ["chat", "chat", "chat"]
    assert [e.prompt_template for e in asked["evaluate_base"]] == ["r1_zero", "r1_zero", "chat"]
    assert name_of(asked["evaluate_base"][-1]) == "general" and asked["evaluate_base"][-1].num_generations == 1


def evaluation(cfg: pipeline.PipelineConfig, name: str, folder: Path) -> evaluate.EvaluateConfig:
    """What a stage of the chain that evaluates reads."""
    keys = pipeline.to_stage(name, pipeline.evaluated(cfg)[name], None).keys
    (folder / "evaluate.yaml").write_text(dump_yaml(keys), encoding="utf-8")
    return evaluate.parse(["--config", str(folder / "evaluate.yaml")])


def test_pairs_that_somebody_must_bring_are_asked_for_before_the_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = ["--config", str(CONFIGS / "deepseek_v3" / "pipeline.yaml"), "--output_dir", str(tmp_path)]
    said = "harmlessness: dataset_name: no file 'safety_pairs.jsonl'"
    assert pipeline.main([*chain, "--dry_run"]) == 0 and said in capsys.readouterr().out
    assert pipeline.main(chain) == 2 and said in capsys.readouterr().err and not list(tmp_path.iterdir())
