r"""A preference model from pairs of answers: a sequence classifier with one output, by the pairwise loss (DeepSeek-R1,
section 3.1). Training is `trl.RewardTrainer`'s; `final/` is what the reward `preference_model` loads.

accelerate launch -m recipes.train_preference_model \
    --config recipes/configs/tiny_v3/pipeline/train_preference_model.yaml
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import StatisticsError, correlation, fmean
from typing import Any

import torch

from data.pairs import Pair, balanced_in_length, read_pairs
from data.report import describe
from grpo.checkpoint.runlock import RunLock
from grpo.config import ModelConfig
from grpo.errors import ConfigError, DataError
from grpo.files import write_json_atomic
from grpo.intervals import bootstrap
from grpo.policy.load import Policy, load_tokenizer, prepare_for_autocast, read_weights
from grpo.policy.preference import Part, PreferenceModel, conversation_ids, judged_part
from recipes.command import exit_code, write_report
from recipes.lineage import fingerprint_of, write_lineage
from recipes.tuning.trainer_keys import TrainerRun, parse_with_trainer, trl
from recipes.tuning.trainer_run import (
    MetricsCallback,
    OwnWeights,
    TunedOutputConfig,
    export,
    resume_point,
    settings,
    this_process,
    trainer_arguments,
    whole_weights,
    write_start,
)

STAGE = "train_preference_model"
FIGURES = "figures.json"
# R1's (arXiv 2501.12948v2, 3.1); 256 pairs an update come from the batch size, the accumulation and the processes.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 6e-6, "num_train_epochs": 1, "logging_steps": 1, "save_total_limit": 2, "report_to": "none"
}  # fmt: skip
# What trl logs -> our names.
METRICS = {
    "loss": "pair_loss", "accuracy": "pair_accuracy", "margin": "pair_margin", "mean_reward": "score/mean",
    "grad_norm": "grad_norm", "learning_rate": "learning_rate", "epoch": "epoch",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Rows of `prompt`, `chosen` and `rejected`, text or messages, in a file, a folder or a Hub set."""

    dataset_name: str  # a .jsonl, .json or .parquet file, a folder, or a Hub id; {split} in it is replaced
    dataset_config: str | None = None  # name of a configuration of a Hub data set
    dataset_train_split: str = "train"  # split that is trained on
    dataset_test_split: str | None = "test"  # held-out pairs of the figures; null: there are none
    # what is judged, in training and as a reward: what follows the thinking (R1's helpfulness), or all (its safety)
    part: Part = "answer"
    max_length: int = 8192  # tokens of a conversation; pairs with a longer one are left out and counted; R1's
    balance_lengths: bool = (
        False  # leave out pairs until the longer answer is chosen as often as not; R1's are balanced
    )
    allow_bad_rows: bool = False  # train without rows that are no pairs, instead of refusing to start


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """A preference model. Every key of `trl.RewardConfig` may stand beside these."""

    model: ModelConfig
    data: PairsConfig
    output: TunedOutputConfig


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: train(parse(given)))


def parse(argv: Sequence[str]) -> TrainerRun:
    return parse_with_trainer(argv, PreferenceConfig, trl().RewardConfig, DEFAULTS)


def train(run: TrainerRun) -> int:
    """The model ends up in `<output_dir>/final`, the figures of held-out pairs in `figures.json`.

    Raises ConfigError, DataError and CheckpointError before the weights are loaded.
    """
    cfg: PreferenceConfig = run.config
    run_dir, dist, began = Path(cfg.output.output_dir), this_process(), time.perf_counter()
    with dist.entered_by_main(RunLock(run_dir)):
        tokenizer = load_tokenizer(cfg.model)
        pairs, held_out, notes = load_pairs(cfg, tokenizer)
        if dist.is_main:
            print(*run.notes, *notes, sep="\n", flush=True)
        source = Path(_place(cfg.data, cfg.data.dataset_train_split))
        what = settings(cfg, run.trainer, pairs=fingerprint_of(source) if source.exists() else str(source))
        checkpoint = resume_point(cfg.output, what, dist)
        if cfg.output.dry_run:
            return 0
        policy = load_classifier(cfg.model, tokenizer, checkpoint, device=dist.device, seed=cfg.output.seed)
        trainer = build_trainer(run, policy, pairs, dist)
        if dist.is_main:
            write_start(run_dir, cfg, run.trainer, what)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        weights = whole_weights(trainer)
        if dist.is_main:
            final = export(policy, run_dir, weights)
            finish(run, measure(final, cfg.data, held_out), len(pairs), time.perf_counter() - began)
        dist.barrier()
    return 0


def load_pairs(cfg: PreferenceConfig, tokenizer: Any) -> tuple[list[Pair], list[Pair], list[str]]:
    """Training pairs, held-out ones, and what a person should know of them. Raises DataError where none is left."""
    data, notes = cfg.data, []
    train = _read(data, data.dataset_train_split, tokenizer, notes)
    held_out = _read(data, data.dataset_test_split, tokenizer, notes) if data.dataset_test_split else []
    if data.balance_lengths:
        balanced = balanced_in_length(train, cfg.output.seed)
        notes.append(f"balance_lengths: {len(train) - len(balanced)} of {len(train)} training pairs left out")
        train = balanced
    if not train:
        raise DataError("balance_lengths leaves no pair: among those of a length difference one side is always longer")
    longer = fmean((pair.longer_by > 0) + 0.5 * (pair.longer_by == 0) for pair in train)
    notes.append(f"the chosen answer is the longer one in {longer:.1%} of the training pairs (equal ones count half)")
    return train, held_out, notes


def _read(data: PairsConfig, split: str, tokenizer: Any, notes: list[str]) -> list[Pair]:
    pairs, report = read_pairs(
        data.dataset_name, split=split, config=data.dataset_config, allow_bad_rows=data.allow_bad_rows
    )
    short = [pair for pair in pairs if max(map(len, pair_ids(tokenizer, pair, data.part))) <= data.max_length]
    if not short:
        raise DataError(f"every pair of {split} has a conversation over max_length={data.max_length} tokens")
    notes.append(f"{report.source} ({split}): {report.rows_read} rows read, {len(short)} pairs kept")
    if report.bad_rows:
        notes.append(f"  {len(report.bad_rows)} bad rows dropped:\n{describe(report.bad_rows)}")
    if left_out := len(pairs) - len(short):
        notes.append(f"  {left_out} pairs over max_length={data.max_length} tokens left out")
    return short


def pair_ids(tokenizer: Any, pair: Pair, part: Part) -> tuple[list[int], list[int]]:
    """Both conversations as the reward `preference_model` will read them."""
    chosen, rejected = (
        conversation_ids(tokenizer, pair.prompt, judged_part(said, part)) for said in (pair.chosen, pair.rejected)
    )
    return chosen, rejected


def load_classifier(
    cfg: ModelConfig, tokenizer: Any, checkpoint: Path | None, *, device: torch.device, seed: int
) -> Policy:
    """A body with a head of one output, new unless the folder has one. Raises ConfigError where transformers has no
    classifier for the architecture."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    place = str(checkpoint) if checkpoint else cfg.model_name_or_path
    common = {"trust_remote_code": cfg.trust_remote_code, **({} if checkpoint else {"revision": cfg.model_revision})}
    torch.manual_seed(seed)  # of the head
    try:
        config = AutoConfig.from_pretrained(place, num_labels=1, **common)
        if config.is_encoder_decoder:
            raise ValueError(f"{config.model_type} reads with an encoder")
        config.get_text_config().pad_token_id = tokenizer.pad_token_id  # by which it finds a row's last token
        kind = AutoModelForSequenceClassification
        if cfg.init_random and not checkpoint:
            model = kind.from_config(config, attn_implementation=cfg.attn_implementation).float()
        else:
            model = read_weights(
                kind, place, new_head=True, config=config, attn_implementation=cfg.attn_implementation, **common
            )
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model_name_or_path: {place} cannot be loaded as a classifier ({str(error).splitlines()[0]}); give a "
            "folder or Hub id of an architecture for which transformers has one (Qwen, Llama, DeepSeek-V3, ...)"
        ) from error
    bf16 = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and device.type == "cuda")
    if bf16:
        prepare_for_autocast(model, device)
    return Policy(
        model=model,
        tokenizer=tokenizer,
        eos_ids=(),
        pad_id=tokenizer.pad_token_id,
        device=device,
        compute_dtype=torch.bfloat16 if bf16 else torch.float32,
    )


def build_trainer(run: TrainerRun, policy: Policy, pairs: Sequence[Pair], dist: Any) -> Any:
    from datasets import Dataset

    cfg: PreferenceConfig = run.config
    ids = [pair_ids(policy.tokenizer, pair, cfg.data.part) for pair in pairs]

    class Trainer(OwnWeights, trl().RewardTrainer):
        pass

    return Trainer(
        model=policy.model,
        args=trainer_arguments(trl().RewardConfig, run, policy, max_length=None),
        train_dataset=Dataset.from_dict({"chosen_ids": [c for c, _ in ids], "rejected_ids": [r for _, r in ids]}),
        processing_class=policy.tokenizer,
        callbacks=[MetricsCallback(Path(cfg.output.output_dir), METRICS, dist)],
    )


def measure(model: Path, data: PairsConfig, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What the reward makes of held-out pairs, asked as it is in a run.

    accuracy: share of pairs whose chosen answer scores higher, ties half, with a 95 % bootstrap interval over prompts,
    whose pairs count together. length_correlation: Pearson's, of the pairs' differences in score and in length; None
    where one of them never differs.
    """
    if not pairs:
        return {}
    judge = PreferenceModel(model_name_or_path=str(model), part=data.part, max_length=data.max_length)
    chosen, rejected = (
        [reward.score for reward in judge(prompts=[pair.prompt for pair in pairs], completions=answers)]
        for answers in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    )
    margins = [float(c or 0) - float(r or 0) for c, r in zip(chosen, rejected, strict=True)]
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for pair, margin in zip(pairs, margins, strict=True):
        by_prompt[str(pair.prompt)].append((margin > 0) + 0.5 * (margin == 0))
    accuracy = bootstrap([fmean(right) for right in by_prompt.values()])
    try:
        length = correlation([pair.longer_by for pair in pairs], margins)
    except StatisticsError:  # no pair differs in length, or none in score
        length = None
    return {
        "pairs": len(pairs),
        "prompts": len(by_prompt),
        "accuracy": {"mean": accuracy.mean, "low": accuracy.low, "high": accuracy.high},
        "margin": fmean(margins),
        "length_correlation": length,
    }


def finish(run: TrainerRun, figures: Mapping[str, Any], pairs: int, seconds: float) -> None:
    cfg: PreferenceConfig = run.config
    run_dir, data = Path(cfg.output.output_dir), cfg.data
    splits = {"pairs": data.dataset_train_split, "held_out": data.dataset_test_split}
    places = {role: _place(data, split) for role, split in splits.items() if split}
    write_json_atomic(run_dir / FIGURES, dict(figures))
    write_lineage(
        run_dir,
        stage=STAGE,
        inputs={"model": cfg.model.model_name_or_path, **places},
        config=settings(cfg, run.trainer),
        seconds=seconds,
        counts={"pairs": pairs, "held_out": dict(figures)},
    )
    if figures:
        accuracy = figures["accuracy"]
        print(
            f"held-out pairs ranked right: {accuracy['mean']:.1%} ({accuracy['low']:.1%} to {accuracy['high']:.1%}, "
            f"{figures['pairs']} pairs of {figures['prompts']} prompts); correlation of margin and length: "
            f"{figures['length_correlation'] or 0:.2f}",
            flush=True,
        )
    print(f"the preference model is in {run_dir / 'final'}", flush=True)
    write_report(run_dir)


def _place(data: PairsConfig, split: str) -> str:
    """Where a split's pairs are: a path, or a Hub id."""
    return data.dataset_name.replace("{split}", split)


if __name__ == "__main__":
    sys.exit(main())
