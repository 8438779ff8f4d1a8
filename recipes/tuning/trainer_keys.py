"""A recipe's flat keys, and with them every key of the trl trainer that it runs.

Our own keys are read as everywhere; any other key that the trainer's config (`trl.SFTConfig`, ...) has goes there as it
is, and names that older recipes use are translated, out loud.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import torch

from grpo.config.coerce import coerce, key_types, refuse_unknown
from grpo.config.help_text import answer_help
from grpo.config.key_rules import OFF, RULES
from grpo.config.parse import Given, build, read_given
from grpo.errors import ConfigError

Config = TypeVar("Config")
TRANSLATED = (
    "torch_dtype", "dtype", "bf16", "attn_implementation", "warmup_ratio", "overwrite_output_dir",
    "resume_from_checkpoint", "activation_checkpointing",
)  # fmt: skip
OURS_TRANSLATED = {"dataset_mixture"}  # the same for keys that not every recipe has
# Keys that change nothing here, whatever they say -> why.
WITHOUT_EFFECT = {
    "save_only_model": "checkpoints always hold what a resume needs",
    "remove_unused_columns": "the trainer gets token ids and labels alone",
    "dataset_text_field": "rows have a prompt and a completion",
    "do_train": "training is what this does",
    "do_eval": "`eval_strategy` says whether",
    "do_predict": "see recipes.evaluate",
    "bf16_full_eval": "held-out rows are computed in `dtype`, as all others",
    "completion_only_loss": "the loss is on completions alone",
    "eval_packing": "held-out rows are packed as the others are, and do not see each other",
}
# Keys that ask for what would go wrong here unless they are off -> what to use.
REFUSED = {
    "assistant_only_loss": "rows end with the assistant's turn, and the loss is on that alone",
    "chat_template_path": "give the template's text as `chat_template`",
    "dataset_kwargs": "rows are tokenised before the trainer sees them",
    "fp16": "dtype: bfloat16",
    "load_best_model_at_end": "the last weights are exported; recipes.evaluate compares checkpoints",
    "model_init_kwargs": "model_name_or_path, model_revision, dtype, attn_implementation, trust_remote_code",
    "packing_strategy": "`packing_strategy: bfd`, by which packed rows are whole and do not see each other",
    "padding_free": "packing: true, which has no padding",
    "pad_token": "the tokenizer's; padding never has a loss",
    "eval_strategy": "see recipes.evaluate",
    "eval_on_start": "see recipes.evaluate",
    "truncation_mode": "long_rows",
}
# Values of REFUSED's keys that recipes carry along: they ask for no more than is done anyway, for no row is longer
# than a pack.
KEPT = {"truncation_mode": ("keep_start",), "packing_strategy": ("bfd", "bfd_split")}
NO_METRICS = "a schedule of the update alone: a resume may change what is held out"
# Values that ask for what would go wrong here -> what to use.
REFUSED_VALUES = {
    ("save_strategy", "best"): "steps or epoch: the last weights are exported; recipes.evaluate compares checkpoints",
    ("lr_scheduler_type", "reduce_lr_on_plateau"): NO_METRICS,
    ("lr_scheduler_type", "greedy"): NO_METRICS,
}
EVALUATION = ("eval_strategy", "eval_on_start")  # for stages that measure the loss of held-out rows
OF_THE_MACHINE = {"deepspeed", "tf32"}  # judged where a run starts
SIMPLE = (bool, int, float, str)


def trl() -> Any:
    """The library, which only some recipes need. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module("trl")
    except ImportError as error:
        raise ConfigError(
            f"this recipe trains with trl ({error}): install this project with its extra `trl`"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TrainerRun:
    """`config`: ours. `trainer`: keyword arguments of the trl config. `notes`: a line for everything translated."""

    config: Any
    trainer: dict[str, Any]
    notes: tuple[str, ...]


def parse_with_trainer(
    argv: Sequence[str],
    root: type[Config],
    trainer: type,
    defaults: Mapping[str, Any],
    *,
    held_out: Callable[[Config], bool] | None = None,
) -> TrainerRun:
    """`defaults`: what the stage uses where neither YAML nor flag says otherwise; keys of both kinds. `held_out`: of a
    stage that measures the loss of held-out rows, whether a config has any.

    Raises ConfigError for a key that neither side knows, for one that this project decides itself, and for a value that
    the trainer refuses.
    """
    answer_help(argv, root)
    own, theirs = key_types(root), {field.name for field in fields(trainer)}
    given = read_given(argv, root)
    refuse_unknown(given.values, {*own, *theirs, *TRANSLATED, "max_seq_length"})
    values, notes = _translated(given, (*TRANSLATED, *(OURS_TRANSLATED & own.keys())))
    values = {**defaults, **values}
    for key, why in REFUSED.items():
        if key in own or (held_out and key in EVALUATION):
            continue
        if values.pop(key, None) not in (*OFF, *KEPT.get(key, ())):
            raise ConfigError(f"{key}: got {given.values[key]!r}; remove it. Here: {why}")
    for (key, value), why in REFUSED_VALUES.items():
        if values.get(key) == value:
            raise ConfigError(f"{key}: got {value!r}. Here: {why}")
    notes += [
        f"without effect: {key} ({WITHOUT_EFFECT[key]})" for key in WITHOUT_EFFECT if values.pop(key, None) is not None
    ]
    hints = get_type_hints(trainer)
    passed = {key: _typed(key, value, hints[key]) for key, value in values.items() if key not in own}
    config = build(root, {key: value for key, value in values.items() if key in own})
    if held_out:
        passed = _evaluating(passed, held_out(config))
    _judge(trainer, passed)
    return TrainerRun(config=config, trainer=passed, notes=tuple(notes))


def _translated(given: Given, keys: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    values, notes = dict(given.values), []
    if "max_seq_length" in values:
        values.setdefault("max_length", values.pop("max_seq_length"))
        notes.append("translated max_seq_length -> max_length")
    for key in keys:
        outcome = RULES[key](given.values[key], given.values) if key in given.values else None
        if outcome is None:
            continue
        if outcome.kind == "not_yet":
            raise ConfigError(f"{key}: got {given.values[key]!r}; not supported: {outcome.text}")
        values.pop(key)
        values |= {name: value for name, value in outcome.native.items() if name not in given.flags - {key}}
        notes.append(f"translated {key} -> {outcome.text}" if outcome.native else f"without effect: {key}")
    return values, notes


def _typed(key: str, value: Any, hint: Any) -> Any:
    """Numbers, words and switches as the trainer's annotation has them; the trainer's own parser reads the rest."""
    kinds = get_args(hint) or (hint,)
    if any(kind not in (*SIMPLE, NoneType) for kind in kinds):
        return value
    return coerce(key, value, hint)


def _evaluating(keys: Mapping[str, Any], held_out: bool) -> dict[str, Any]:
    """`keys`, and when held-out rows are evaluated: after every epoch unless they say otherwise. Raises ConfigError."""
    when = {"eval_strategy": "epoch" if held_out else "no"} | {key: keys[key] for key in EVALUATION if key in keys}
    asked = {key: value for key, value in when.items() if value not in OFF}
    if asked and not held_out:
        key, value = next(iter(asked.items()))
        raise ConfigError(
            f"{key}: got {value!r}, but no rows are held out: name their split, `dataset_test_split: test`, or remove "
            f"`{key}`"
        )
    if asked.get("eval_strategy") == "steps" and not keys.get("eval_steps"):
        raise ConfigError("eval_strategy: steps needs `eval_steps`: after how many updates each, such as 100")
    others = {key: value for key, value in keys.items() if key not in EVALUATION}
    return others | {"eval_strategy": "no"} | asked


def _judge(kind: type, keys: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value that the trainer's config refuses. It makes one that chooses no device, which
    would be this process's from then on."""
    nowhere = type(kind.__name__, (kind,), {"device": torch.device("cpu")})
    judged = {key: value for key, value in keys.items() if key not in OF_THE_MACHINE}
    trainer_config(nowhere, **judged, output_dir=".", bf16=False)


def trainer_config(kind: type, **keys: Any) -> Any:
    """Raises ConfigError with what the trainer's own config says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # `gradient_checkpointing`, which trl itself sets
            return kind(**keys)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trl's {kind.__name__} refuses these keys: {error}") from error
