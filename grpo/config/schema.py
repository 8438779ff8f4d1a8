"""The knobs of a run: small frozen dataclasses, one per owner. Keys are flat and, where TRL has the knob, TRL's.

`grpo.config.parse` turns YAML and command-line flags into a `RunConfig`; nothing is filled in afterwards. Numbers that
follow from others are properties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy. `dtype` is the compute type: auto = bfloat16 on a GPU with fp32 master weights, fp32 on CPU."""

    model_name_or_path: str
    model_revision: str = "main"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    gradient_checkpointing: bool = False
    chat_template: str | None = None
    eos_token: str | None = None
    init_random: bool = False  # build from the config only, random weights: for smoke tests on real data


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA through peft; off means every weight is trained."""

    use_peft: bool = False
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: str | list[str] = "all-linear"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where problems come from. `dataset_name`: `gym:<task>` (reasoning-gym), `gsm8k:<path or Hub id>`, the path of a
    .jsonl, .json or .parquet file, or a Hub id."""

    dataset_name: str
    dataset_config: str | None = None
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)  # gym: the task's own settings
    dataset_filter: str | None = None  # package.module:function, Problem -> bool
    dataset_train_split: str = "train"
    dataset_test_split: str | None = "test"
    dataset_prompt_column: str = "prompt"
    dataset_answer_column: str = "answer"
    prompt_template: Literal["r1_zero", "chat", "plain"] = "chat"
    system_prompt: str | None = None
    max_prompt_length: int | None = None  # tokens; longer prompts are dropped and counted
    allow_bad_rows: bool = False


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """`reward_funcs`: a name, `package.module:function`, or {name, weight, and arguments for a factory}."""

    reward_funcs: list[str | dict[str, Any]]
    reward_weights: list[float] | None = None
    mask_truncated_completions: bool = False


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What one rollout samples."""

    problems_per_rollout: int = 32
    num_generations: int = 16
    max_completion_length: int = 256  # tokens
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_strings: list[str] = field(default_factory=list)
    sampler: Literal["reference"] = "reference"
    rows_per_forward: int = 512  # rows of one `generate` call


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """Rewards -> advantages. `scale_rewards`: divide by the group's std, the batch's std, or not at all."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    advantage_baseline: Literal["mean", "leave_one_out"] = "mean"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The clipped surrogate, the KL term, and how token losses become one number."""

    loss_type: Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None  # None: as epsilon. cispo: an absolute cap on the ratio
    delta: float | None = None  # two-sided clip: an upper bound on the unclipped ratio
    beta: float = 0.0
    use_bias_correction_kl: bool = False  # V3.2's unbiased KL: k3 times the ratio


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule. `max_steps` counts updates; -1 means `num_train_epochs` decides."""

    learning_rate: float = 1e-6
    lr_scheduler_type: str = "constant_with_warmup"
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    warmup_steps: float = 0  # below 1: a share of all updates
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # 0: measured, not clipped
    max_steps: int = -1
    num_train_epochs: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How one rollout becomes updates, and an update becomes micro-batches."""

    num_minibatches: int = 1  # R1: 16
    num_iterations: int = 1
    max_tokens_per_microbatch: int = 16384  # padded tokens of one forward, on each process


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The frozen policy of the KL term, used only when beta > 0."""

    sync_ref_model: bool = False
    ref_model_sync_steps: int = 400  # updates
    ref_model_mixup_alpha: float = 1.0  # 1 = hard copy, as R1; TRL's default is 0.6


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation before, during and after training."""

    eval_steps: int = 0  # updates; 0: only before and after
    eval_on_start: bool = False
    eval_on_end: bool = False
    eval_problems: int = 256
    eval_samples: int = 16
    eval_temperature: float = 1.0
    eval_top_p: float = 1.0
    eval_seed: int = 1234


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """The run folder: what is written and how often (in updates)."""

    output_dir: str
    save_steps: float = 0  # below 1: a share of all updates; 0: only at the end
    save_total_limit: int = 2
    resume: Literal["auto", "never", "must"] = "never"
    logging_steps: int = 1
    log_completions: bool = False
    report_to: list[str] = field(default_factory=list)
    run_name: str | None = None
    seed: int = 42
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything one run needs, by owner."""

    model: ModelConfig
    adapter: AdapterConfig
    data: DataConfig
    rewards: RewardConfig
    sampling: SamplingConfig
    advantage: AdvantageConfig
    loss: LossConfig
    optim: OptimConfig
    batch: BatchConfig
    reference: ReferenceConfig
    eval: EvalConfig
    output: OutputConfig
    preset: str | None = None  # r1_zero | r1 | deepseekmath | dr_grpo | dapo | gspo | cispo | v3_2

    @property
    def updates_per_rollout(self) -> int:
        return self.batch.num_minibatches * self.batch.num_iterations

    @property
    def rows_per_rollout(self) -> int:
        return self.sampling.problems_per_rollout * self.sampling.num_generations


def in_updates(steps: float, total_updates: int) -> int:
    """A cadence in updates: as it is, or below 1 a share of all updates, rounded up as in transformers."""
    return math.ceil(steps * total_updates) if 0 < steps < 1 else int(steps)
