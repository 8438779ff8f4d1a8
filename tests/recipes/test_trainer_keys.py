"""Keys of ours and of TRL's trainer side by side, and the recipes that people have."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import PartialState

from data.conversations import Conversation, ShardWriter
from grpo.errors import ConfigError
from recipes.cold_start_sft import parse
from recipes.distill_on_policy import parse as parse_on_policy
from recipes.train_preference_model import parse as parse_preference
from tests.recipes.test_sft import tune

REQUIRED = ["--model_name_or_path", "model", "--dataset_name", "rows", "--output_dir", "run"]


def parsed(*more: str) -> dict[str, object]:
    return parse([*REQUIRED, *more]).trainer


def test_r1s_schedule_is_the_default_and_a_flag_wins() -> None:
    assert parsed()["learning_rate"] == 5e-5 and parsed()["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert parsed("--learning_rate", "1e-4", "--packing")["learning_rate"] == 1e-4
    assert parsed("--packing")["packing"] is True


def test_every_sft_recipe_of_open_r1_is_understood(shared_data: Path) -> None:
    files = sorted((shared_data / "open-r1-recipes").glob("*sft*.yaml"))
    assert len(files) == 3
    for path in files:
        run = parse(["--config", str(path)])
        assert run.config.model.dtype == "bfloat16" and run.config.data.max_length in (22528, 32768)
        assert run.trainer["warmup_steps"] == 0.03 and run.trainer["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
        assert run.trainer["push_to_hub"] is True and run.trainer["save_strategy"] == "epoch"
        told = " ".join(run.notes)
        for key in ("torch_dtype", "overwrite_output_dir", "warmup_ratio", "bf16", "do_eval"):
            assert key in told
        assert "save_only_model" not in run.trainer


def test_a_recipe_of_open_r1_trains(shared_data: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Its own template and end token; without a GPU, a login and other people's kernels."""
    rows = [Conversation(id=str(n), prompt=[{"role": "user", "content": f"{n}?"}], completion="Yes.") for n in range(4)]
    ShardWriter(tmp_path / "rows", conversational=True).write(rows, state=None)
    path = shared_data / "open-r1-recipes" / "OpenR1-Distill-7B__sft__config_distill.yaml"
    more = f"--config {path} --eos_token <eos> --push_to_hub false --use_liger_kernel false --report_to none"
    more += " --dataset_config none --max_length 4096 --max_steps 1"
    assert tune(tiny_base, tmp_path / "rows", tmp_path / "run", more) == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--lerning_rate", "1"], "unknown key 'lerning_rate'. Did you mean 'learning_rate'?"),
        (["--learning_rate", "fast"], "learning_rate: got 'fast'; allowed: a number"),
        (["--assistant_only_loss", "true"], "assistant_only_loss: got True; remove it"),
        (["--save_strategy", "best"], "save_strategy: got 'best'. Here: steps or epoch"),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], "lr_scheduler_type: got .*a schedule of the update alone"),
        (["--padding_free", "true"], "padding_free: got True; remove it. Here: packing: true"),
        (["--eval_strategy", "steps"], "eval_strategy: got 'steps'.*no rows are held out.*dataset_test_split: test"),
        (["--eval_on_start", "true"], "eval_on_start: got True.*no rows are held out"),
        (["--dataset_test_split", "test", "--eval_strategy", "steps"], "eval_strategy: steps needs `eval_steps`"),
        (["--dataset_test_split", "test", "--eval_strategy", "step"], " step is not a valid IntervalStrategy.*epoch"),
        (["--lr_scheduler_type", "cosin"], "trl's SFTConfig refuses.*cosin is not a valid SchedulerType.*cosine"),
        (["--load_best_model_at_end", "true"], "load_best_model_at_end: got True.*the last weights are exported"),
        (["--packing", "--packing_strategy", "wrapped"], "packing_strategy: got 'wrapped'.*`packing_strategy: bfd`"),
        (["--truncation_mode", "keep_end"], "truncation_mode: got 'keep_end'.*long_rows"),
        (["--resume_from_checkpoint", "some/path"], "resume_from_checkpoint: .*not supported"),
        (["--lora_r", "many"], "lora_r: got 'many'"),
    ],
)
def test_keys_that_cannot_be_are_named(flags: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("?", r"\?")):
        parsed(*flags)


def test_what_means_nothing_else_here_is_said_and_not_refused() -> None:
    old = "--max_seq_length 99 --save_only_model true --truncation_mode keep_start --eval_packing false"
    run = parse([*REQUIRED, *old.split()])
    assert run.config.data.max_length == 99
    assert run.notes == (
        "translated max_seq_length -> max_length",
        "without effect: save_only_model (checkpoints always hold what a resume needs)",
        "without effect: eval_packing (held-out rows are packed as the others are, and do not see each other)",
    )


def test_a_flag_wins_over_an_older_name_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("torch_dtype: bfloat16\nmax_seq_length: 99\n")
    run = parse([*REQUIRED, "--config", str(tmp_path / "old.yaml"), "--dtype", "float32", "--max_length", "7"])
    assert run.config.model.dtype == "float32" and run.config.data.max_length == 7


def test_a_key_that_both_sides_know_is_ours() -> None:
    run = parse_on_policy([*REQUIRED, "--teacher_model_name_or_path", "t", "--temperature", "0.7", "--beta", "0.5"])
    assert run.config.sampling.temperature == 0.7 and "temperature" not in run.trainer
    assert run.trainer["beta"] == 0.5


def test_every_stage_has_its_values_judged() -> None:
    with pytest.raises(ConfigError, match="beta must be in"):
        parse_on_policy([*REQUIRED, "--teacher_model_name_or_path", "t", "--beta", "2"])
    with pytest.raises(ConfigError, match="cosin is not a valid SchedulerType"):
        parse_preference([*REQUIRED, "--lr_scheduler_type", "cosin"])


def test_judging_values_asks_for_no_device_and_chooses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PartialState, "_shared_state", {})
    assert parsed("--tf32", "true", "--dtype", "bfloat16")["tf32"] is True
    assert PartialState._shared_state == {}


def test_held_out_rows_are_evaluated_as_asked() -> None:
    split = ["--dataset_test_split", "test"]
    assert parsed()["eval_strategy"] == "no" and parsed(*split)["eval_strategy"] == "epoch"
    often = parsed(*split, "--eval_strategy", "steps", "--eval_steps", "5", "--eval_on_start", "true")
    assert (often["eval_strategy"], often["eval_steps"], often["eval_on_start"]) == ("steps", 5, True)
    assert parsed(*split, "--eval_strategy", "no")["eval_strategy"] == "no"
    assert "packing_strategy" not in parsed("--packing", "--packing_strategy", "bfd")
