"""The knobs of a run: small frozen dataclasses, one per owner. Keys are flat and, where TRL has the knob, TRL's.

`grpo.config.parse` turns YAML and command-line flags into a `RunConfig`; nothing is filled in afterwards. Numbers that
follow from others are properties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from grpo.config.vllm import VllmConfig
from grpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy. `dtype` is the compute type: auto = bfloat16 on a GPU with fp32 master weights, fp32 on CPU."""

    model_name_or_path: str  # a folder in Hugging Face format, or a Hub id
    model_revision: str = "main"  # branch, tag or commit of a Hub model
    # of the computation; auto: bfloat16 on a GPU, float32 on a CPU
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attn_implementation: str | None = None  # transformers' name: eager, sdpa, flash_attention_2; null: its own choice
    trust_remote_code: bool = False  # run Python code that comes with a Hub model or data set
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them: less memory, slower
    chat_template: str | None = None  # Jinja text in place of the tokenizer's own template
    eos_token: str | None = None  # token of the vocabulary that ends a completion, in place of the tokenizer's own
    init_random: bool = False  # random weights in the shape of the model's config, for smoke tests on real data


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """LoRA through peft; off means every weight is trained."""

    use_peft: bool = False  # train a LoRA adapter and leave the model's own weights as they are
    lora_r: int = 16  # rank of the adapter; at least 1
    lora_alpha: int = 32  # the adapter's output is scaled by lora_alpha / lora_r; at least 1
    lora_dropout: float = 0.0  # on the adapter's input; from 0 to below 1
    lora_target_modules: str | list[str] = "all-linear"  # all-linear, or names of the linear layers that get an adapter


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where problems of one kind come from, and how they are shown. `dataset_name`: `gym:<task>` (reasoning-gym),
    `gsm8k:<path or Hub id>`, the path of a .jsonl, .json or .parquet file, or a Hub id."""

    # gym:<task>, gsm8k:<path or Hub id>, a .jsonl, .json or .parquet file, or a Hub id
    dataset_name: str | None = None
    dataset_config: str | None = None  # name of a configuration of a Hub data set
    # gym: the task's own settings, and size, seed, heldout_share, split_by
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)
    # package.module:function, Problem -> bool; what it refuses is left out and counted
    dataset_filter: str | None = None
    dataset_train_split: str = "train"  # split that is trained on
    dataset_test_split: str | None = "test"  # held-out split of the evaluations; null: there is none
    dataset_prompt_column: str = "prompt"  # column of the question, as text or chat messages
    # column of the gold answer; null: there is none, a judge or a preference model decides
    dataset_answer_column: str | None = "answer"
    # r1_zero: the paper's conversation, for base models; chat: the tokenizer's; plain: the question alone
    prompt_template: Literal["r1_zero", "chat", "plain"] = "chat"
    system_prompt: str | None = None  # first message of every conversation; only with prompt_template chat


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """The problems of a run: one source, or several in `dataset_mixture`."""

    # several sources in place of dataset_name: mappings with the keys above (what one does not say is as here), and
    # task: its name for rewards and figures, weight: its share of a rollout, keep: the share of its problems to use
    dataset_mixture: list[dict[str, Any]] = field(default_factory=list)
    mixture_weights: list[float] | None = None  # one for each of dataset_mixture, at least 0; null: those given there
    # tokens; longer prompts are dropped and counted, never cut; null: one without room for a completion is refused
    max_prompt_length: int | None = None
    allow_bad_rows: bool = False  # train without rows that cannot be read or judged, instead of refusing to start

    def __post_init__(self) -> None:
        require_one_source(self.dataset_name, self.dataset_mixture)


def require_one_source(name: str | None, mixture: Sequence[Mapping[str, Any]] | None) -> None:
    """Raises ConfigError unless either `dataset_name` or `dataset_mixture` is given."""
    if name is None and not mixture:
        raise ConfigError("dataset_name is required: give it in the YAML file or as --dataset_name")
    if name is not None and mixture:
        raise ConfigError("dataset_name is given, and so is dataset_mixture: keep one of the two")


@dataclass(frozen=True, kw_only=True)
class EntryConfig(SourceConfig):
    """One entry of `dataset_mixture`."""

    task: str | None = None  # of its problems, for rewards and figures; null: what the rows or the gym call it
    weight: float | None = None  # its share of a rollout, in any unit, at least 0; null in all entries: their sizes
    keep: float = 1.0  # share of its problems, the first ones, that are used at all; above 0 and at most 1


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """`reward_funcs`: a name, `package.module:function`, or {name, weight, and arguments for a factory}."""

    # a name from rewards/README.md, package.module:function, or {name: ..., weight: ..., arguments}
    reward_funcs: list[str | dict[str, Any]]
    # one for each of reward_funcs, at least 0; null: those given there, else 1
    reward_weights: list[float] | None = None
    check_rewards: bool = True  # refuse to train on rewards that `grpo doctor` would call sick
    mask_truncated_completions: bool = False  # completions cut off at max_completion_length teach nothing (DAPO)
    # process: rewards named by a path run in worker processes, which a deadline can kill; none: here, for a debugger
    reward_isolation: Literal["process", "none"] = "process"
    reward_timeout: float = 120.0  # seconds of one call of a reward on its batch; above 0
    reward_sample_timeout: float = 10.0  # seconds of one completion, where a reward is asked one at a time; above 0
    # when a reward raises. raise: the run ends; mask: the row leaves its group, and is counted
    on_reward_error: Literal["raise", "mask"] = "raise"
    # the run ends when a reward failed on more than this share of its last 200 rows; from 0 to 1, 1: never
    reward_error_limit: float = 0.05


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are sampled."""

    num_generations: int = 16  # completions of each problem: the group; at least 2
    max_completion_length: int = 256  # tokens; at least 1
    min_completion_length: int = 0  # tokens before which no end token is drawn; at most max_completion_length
    temperature: float = 1.0  # of sampling; above 0
    # smallest set of tokens with this much probability; above 0, 1: all. Training is on the distribution over the set
    # that sampling kept, here and under top_k, min_p and min_completion_length
    top_p: float = 1.0
    # this many likeliest tokens; 0: all. Then training keeps up to 4 x top_k bytes for every token; without it, where
    # top_p or min_p keep much, up to 2 x vocabulary
    top_k: int = 0
    # tokens of at least this share of the likeliest one's probability; from 0 to 1, null: all
    min_p: float | None = None
    repetition_penalty: float = 1.0  # divides the logits of tokens that occurred; above 0, 1: off
    stop_strings: list[str] = field(default_factory=list)  # texts that end a completion
    # fast: the built-in engine, where it knows the model's family; reference: transformers' generate; vllm: see below
    sampler: Literal["fast", "reference", "vllm"] = "fast"
    max_tokens_in_flight: int = 262_144  # tokens of cache that the fast sampler may hold; at least 1
    rows_per_forward: int = 512  # rows of one generate call of the reference sampler; at least 1
    vllm: VllmConfig = field(default_factory=VllmConfig)


@dataclass(frozen=True, kw_only=True)
class AdvantageConfig:
    """Rewards -> advantages. `scale_rewards`: divide by the group's std, the batch's std, or not at all."""

    # divide advantages by the group's std (GRPO), the batch's, or not at all (Dr. GRPO)
    scale_rewards: Literal["group", "batch", "none"] = "group"
    # what is taken off a reward: its group's mean, or the mean of the others (RLOO)
    advantage_baseline: Literal["mean", "leave_one_out"] = "mean"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The clipped surrogate, the KL term, and how token losses become one number."""

    # how token losses become one number, and the form of the clip
    loss_type: Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo"] = "grpo"
    importance_sampling_level: Literal["token", "sequence"] = "token"  # ratio of each token, or of the sequence (GSPO)
    epsilon: float = 0.2  # lower clip: ratios below 1 - epsilon; above 0
    # upper clip, above 0; null: as epsilon; cispo: the cap on the ratio itself, at least 1
    epsilon_high: float | None = None
    # two-sided clip: an upper bound on the unclipped ratio, above 1 + epsilon_high; null: none
    delta: float | None = None
    beta: float = 0.0  # weight of the KL term; at least 0, 0: no reference model
    use_bias_correction_kl: bool = False  # the unbiased KL of DeepSeek-V3.2: k3 times the ratio


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """What the loss does about tokens that were sampled with other probabilities than the trainer computes: by vLLM, in
    low precision, under a repetition penalty, or by the policy of some updates ago. Keys and modes are TRL's."""

    # weigh the loss by trainer / sampler probability, for every sampler (the name is TRL's); costs no forward
    vllm_importance_sampling_correction: bool = True
    # weight of each token or of its whole sequence; outside the bounds it is held there (truncate) or 0 (mask)
    vllm_importance_sampling_mode: Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = (
        "token_truncate"
    )
    vllm_importance_sampling_clip_max: float | None = 3.0  # upper bound of that weight, above 0; null: none
    vllm_importance_sampling_clip_min: float | None = None  # lower bound, above 0; null: none
    # DeepSeek-V3.2: a completion with advantage below 0 teaches nothing once its tokens' mean log(sampler / policy)
    # probability is above this; above 0, null: off
    off_policy_mask_threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule. `max_steps` counts updates; -1 means `num_train_epochs` decides."""

    learning_rate: float = 1e-6  # at the top of the schedule; above 0
    # constant | constant_with_warmup | linear | cosine | cosine_with_min_lr | cosine_with_restarts | polynomial |
    # inverse_sqrt | warmup_stable_decay
    lr_scheduler_type: str = "constant_with_warmup"
    # the schedule's own settings, for example {min_lr_rate: 0.1}
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    warmup_steps: float = 0  # updates; below 1: a share of all updates
    weight_decay: float = 0.0  # AdamW's; at least 0
    adam_beta1: float = 0.9  # from 0 to below 1
    adam_beta2: float = 0.999  # from 0 to below 1
    adam_epsilon: float = 1e-8  # above 0
    max_grad_norm: float = 1.0  # gradients are scaled down to this L2 norm; 0: measured only
    max_steps: int = -1  # updates of the whole run; -1: num_train_epochs decides
    num_train_epochs: float = 1.0  # passes over the training problems, where max_steps is -1; above 0


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How large one rollout is, how it becomes updates, and an update micro-batches."""

    problems_per_rollout: int = 32  # problems sampled at a time; at least 1
    num_minibatches: int = 1  # updates that share out the rows of a rollout (R1: 16); at least 1
    num_iterations: int = 1  # passes over the rows of a rollout; at least 1
    # tokens of one forward on each process, padding included; changes memory and speed, not results
    max_tokens_per_microbatch: int = 16384
    # packed: no padding, and siblings share the work on their prompt, where the model's family is known; padded: rows
    update: Literal["packed", "padded"] = "packed"


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Which problems are drawn, and which of their groups a rollout trains on."""

    # DAPO: draw and sample again until problems_per_rollout groups are informative; the others are discarded, counted,
    # and pass more problems than num_train_epochs counts
    dynamic_sampling: bool = False
    # informative: the rewards of a group differ; or they do, and some completions are correct and some are not (DAPO)
    dynamic_sampling_metric: Literal["reward", "accuracy"] = "reward"
    max_num_gen_batches: int = 10  # rounds of sampling for one rollout, which then trains on what there is; at least 1
    # ScaleRL: a problem of whose completions this share is correct is not drawn again (0.9); above 0, null: all are
    retire_solved_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The frozen policy of the KL term, used only when beta > 0."""

    sync_ref_model: bool = False  # replace the reference by the policy from time to time
    ref_model_sync_steps: int = 400  # updates between two of those; at least 1
    ref_model_mixup_alpha: float = 1.0  # share of the policy in the new reference; above 0, 1: all of it, as R1


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation before, during and after training."""

    eval_steps: int = 0  # updates between two evaluations; 0: only before and after
    eval_on_start: bool = False  # evaluate before the first update
    eval_on_end: bool = False  # evaluate after the last update
    eval_problems: int = 256  # held-out problems, the first of the split; at least 1
    eval_samples: int = 16  # completions of each; at least 1
    eval_temperature: float = 1.0  # of their sampling; above 0
    eval_top_p: float = 1.0  # as top_p; above 0 and at most 1
    eval_seed: int = 1234  # of their draws, the same at every evaluation; at least 0


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """The run folder: what is written and how often (in updates)."""

    output_dir: str  # the run folder
    save_steps: float = 0  # updates between two checkpoints; below 1: a share of all; 0: only at the end
    save_total_limit: int = 2  # newest checkpoints kept, besides the best; at least 2
    # auto: from the newest checkpoint if there is one; never: refuse a used folder; must: refuse a fresh one
    resume: Literal["auto", "never", "must"] = "never"
    stop_grace_seconds: float = 25  # after SIGTERM, for the rest of a rollout and its save; torchrun kills after 30
    logging_steps: int = 1  # updates between two lines on the console; metrics.jsonl has them all; at least 1
    log_completions: bool = False  # keep every completion, for grpo show
    report_to: list[str] = field(default_factory=list)  # any of tensorboard, trackio, wandb, or none
    run_name: str | None = None  # name shown by the trackers; null: the folder's name
    seed: int = 42  # of weights, order and draws; at least 0
    dry_run: bool = False  # show what the run would do, and do nothing


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
    correction: CorrectionConfig
    optim: OptimConfig
    batch: BatchConfig
    selection: SelectionConfig
    reference: ReferenceConfig
    eval: EvalConfig
    output: OutputConfig
    # r1_zero | r1 | r1_all_scenarios | deepseekmath | dr_grpo | dapo | gspo | cispo | v3_2: fills in published values
    preset: str | None = None
    # other values from an update on, or, negative, for the last ones: [{update: 8200, max_completion_length: 65536}]
    schedule: list[dict[str, Any]] = field(default_factory=list)

    @property
    def updates_per_rollout(self) -> int:
        return self.batch.num_minibatches * self.batch.num_iterations

    @property
    def rows_per_rollout(self) -> int:
        return self.batch.problems_per_rollout * self.sampling.num_generations


def in_updates(steps: float, total_updates: int) -> int:
    """A cadence in updates: as it is, or below 1 a share of all updates, rounded up as in transformers."""
    return math.ceil(steps * total_updates) if 0 < steps < 1 else int(steps)
