"""Shipped settings of the sampling stages: the tiny files run, and the real families without their weights."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer

from grpo.config.coerce import dump_yaml, load_yaml
from grpo.config.parse import parse_flat
from grpo.dry_run import meta_model
from grpo.plan import room
from recipes import make_cold_start, pipeline, rejection_sampling
from recipes.make_cold_start import ColdStartConfig
from recipes.rejection_sampling import RejectionSamplingConfig
from recipes.rows.sources import as_run
from tests.house_rules.pages import TEXT, blocks
from tests.recipes import test_real_model_configs as qwen
from tests.recipes import test_stage_configs as families
from tests.recipes.rows_process import report_of, rows_of

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
WORLD_BASE = CONFIGS / "tiny_v3" / "world_base"


class Family(NamedTuple):
    """sizes: see families.save_config. cached: numbers of a token, all layers. gpu: bytes of the one that the files
    name. rows: at full length in flight, at least."""

    sizes: dict[str, Any]
    cached: int
    gpu: float
    rows: int


FAMILIES = {
    "qwen2_5_1_5b": Family(families.QWEN, cached=qwen.LAYERS * 2 * qwen.KEY_VALUE, gpu=48e9, rows=64),
    "deepseek_v3": Family(families.MOONLIGHT, cached=27 * (512 + 64), gpu=141e9, rows=30),
}
SMOLTALK = {"all": 1_043_917, "everyday-conversations": 2_260}  # training rows, as its card says
STAGES: dict[str, tuple[Any, type]] = {
    "make_cold_start": (make_cold_start, ColdStartConfig),
    "rejection_sampling": (rejection_sampling, RejectionSamplingConfig),
}


@pytest.fixture(scope="module")
def cut_down(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The family's folder: two narrow layers and a small vocabulary, random weights."""
    return cache(lambda family: families.cut_down(tmp_path_factory.mktemp(family) / "cut", FAMILIES[family].sizes))


@pytest.mark.parametrize("stage", STAGES)
def test_the_tiny_file_runs(stage: str, tmp_path: Path) -> None:
    module, _ = STAGES[stage]
    small = "--model_name_or_path={} --output_dir={} --problems_per_shard=16 --num_generations=4 --check_rewards=false"
    path = CONFIGS / "tiny_v3" / "pipeline" / f"{stage}.yaml"
    sources = load_yaml(path.read_text(encoding="utf-8"))["dataset_mixture"]
    few = [{**source, "dataset_kwargs": {**source["dataset_kwargs"], "size": 20}} for source in sources]
    argv = ["--config", str(path), f"--dataset_mixture={json.dumps(few)}", "--keep_at_least={format: 1}"]
    argv += ["--mix_dataset=null"] if stage == "rejection_sampling" else []  # another stage makes those
    assert module.main([*argv, *small.format(WORLD_BASE, tmp_path / stage).split()]) == 0
    assert len(rows_of(tmp_path / stage)) > 5


def test_the_tiny_file_takes_traces_as_the_page_says(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = next(line for line in blocks(TEXT["recipes/README.md"], "bash") if "--from_traces" in line)
    words = shlex.split(next(line for line in command.splitlines() if "--from_traces" in line))
    assert words[:3] == ["python", "-m", "recipes.make_cold_start"]
    (tmp_path / "recipes").symlink_to(CONFIGS.parent)
    monkeypatch.chdir(tmp_path)
    chat = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "<think>2</think> <answer>4</answer>"},
    ]
    Path("traces.jsonl").write_text(json.dumps({"messages": chat, "answer": "4"}))
    assert make_cold_start.main([*words[3:], "--model_name_or_path", str(tiny_base)]) == 0
    [row] = rows_of(tmp_path / "runs" / "world-make_cold_start")
    assert row.completion == chat[1]["content"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", STAGES)
def test_the_published_sizes_fit_the_gpu_that_the_file_names(stage: str, family: str, tmp_path: Path) -> None:
    """The architecture on the meta device; the cache of the rows in flight, by hand, beside weights and copies."""
    config = families.save_config(tmp_path, FAMILIES[family].sizes)
    path = CONFIGS / family / f"{stage}.yaml"
    run = as_run(parse_flat(["--config", str(path), "--model_name_or_path", str(tmp_path)], STAGES[stage][1]))
    model = meta_model(run.model)
    weights = sum(p.numel() for p in model.parameters())
    assert weights == families.parameters_by_hand(config) and {p.device.type for p in model.parameters()} == {"meta"}
    longest = run.data.max_prompt_length
    rows, prompts = room(run.sampling, longest_prompt=longest, num_rows=10**6)
    tokens = rows * run.sampling.max_completion_length + prompts * longest
    assert rows >= FAMILIES[family].rows and tokens <= run.sampling.max_tokens_in_flight
    cache = 2 * tokens * FAMILIES[family].cached
    assert (4 + 2) * weights + cache < FAMILIES[family].gpu
    assert longest + run.sampling.max_completion_length <= config.max_position_embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_rows_are_enough_for_their_share(family: str) -> None:
    """A quarter beside the reasoning rows of GSM8K, if every one of its 7,473 problems gives all that it may."""
    path = CONFIGS / family / "rejection_sampling.yaml"
    cfg = parse_flat(["--config", str(path)], RejectionSamplingConfig)
    assert cfg.mix.mix_dataset == "HuggingFaceTB/smoltalk"
    reasoning, share = 7473 * cfg.keep.max_per_problem, cfg.mix.mix_share
    assert SMOLTALK[cfg.mix.mix_config] >= reasoning * share / (1 - share)


def test_the_evaluations_of_the_large_chain_fit_beside_their_judge(tmp_path: Path) -> None:
    """Weights, their copies in bf16, the preference model in bf16 and the cache leave 6 GiB of 141 GB to work in."""
    family = FAMILIES["deepseek_v3"]
    weights = families.parameters_by_hand(families.save_config(tmp_path, family.sizes))
    chain = pipeline.parse(["--config", str(CONFIGS / "deepseek_v3" / "pipeline.yaml")])
    protocol = qwen.evaluation(chain, "evaluate_r1", tmp_path).protocol
    assert protocol.max_tokens_in_flight >= 24 * 8192
    cache = 2 * protocol.max_tokens_in_flight * family.cached
    assert (4 + 2 + 2) * weights + cache + 6 * 2**30 < family.gpu


def sample(stage: str, family: str, model: Path, shared_data: Path, folder: Path) -> Path:
    """The shipped file on four real rows, as every source. Random weights solve nothing, so that rows are kept whose
    only reward is for not repeating themselves."""
    tests = {"language": "python", "test_cases": [{"type": "stdin_stdout", "input": "1", "output": "2"}]}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in islice((shared_data / f"gsm8k_{split}.jsonl").open(encoding="utf-8"), 4)]
        shown = [row | {"problem": row["question"], "problem_statement": row["question"], "verification_info": tests,
                        "answer": row["answer"].split("#### ")[1]} for row in rows]  # fmt: skip
        (folder / f"rows_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown), encoding="utf-8")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good morning."}]
    (folder / "chat.jsonl").write_text(json.dumps({"messages": chat}))
    keys = load_yaml((CONFIGS / family / f"{stage}.yaml").read_text(encoding="utf-8"))
    here = {"dataset_name": str(folder / "rows_{split}.jsonl"), "dataset_config": None}
    for source in keys.get("dataset_mixture", [keys]):
        source |= here | ({"dataset_prompt_column": "question"} if "gsm8k:" in source["dataset_name"] else {})
    if stage == "rejection_sampling":
        keys |= {"mix_dataset": str(folder / "chat.jsonl"), "mix_config": None}
    keys |= {
        "model_name_or_path": str(model), "output_dir": str(folder / stage), "dtype": "float32",
        "num_generations": 2, "max_completion_length": 60, "stop_strings": ["e"], "keep_at_least": {},
        "reward_funcs": [{"name": "repetition_penalty", "ngram_size": 2}], "check_rewards": False,
        "decontaminate": [{**here, "dataset_prompt_column": "question"}],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(dump_yaml(keys), encoding="utf-8")
    assert STAGES[stage][0].main(["--config", str(folder / "recipe.yaml")]) == 0
    return folder / stage


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stage", STAGES)
def test_real_rows_through_the_family(
    stage: str, family: str, cut_down: Callable[[str], Path], shared_data: Path, tmp_path: Path
) -> None:
    folder, tokenizer = cut_down(family), AutoTokenizer.from_pretrained(cut_down(family))
    out = sample(stage, family, folder, shared_data, tmp_path)
    made, sources = rows_of(out), 2 if (stage, family) == ("rejection_sampling", "deepseek_v3") else 1
    assert report_of(out)["total"]["samples"] == 8 * sources and len(made) > 2
    assert len({row.task for row in made} - {"general"}) == sources
    assert sum(row.task == "general" for row in made) == (stage == "rejection_sampling")
    questions = {json.loads(line)["question"] for line in (tmp_path / "rows_train.jsonl").read_text().splitlines()}
    for row in made:
        [turn] = row.prompt
        assert turn["role"] == "user" and turn["content"] in {*questions, "Hi"}
        shown = tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True, tokenize=False)
        assert shown.endswith("<assistant>") and turn["content"] in shown
