"""The policy: a causal language model with its tokenizer, loaded, adapted and ready to sample from and to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from data.problem import Message
from grpo.config import AdapterConfig, ModelConfig
from grpo.errors import ConfigError
from grpo.policy.experts import cast_experts, drop_group_masks
from grpo.policy.hub import require_source, unavailable


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model and everything needed to talk to it. The weights are fp32 in training, and `compute_dtype` is autocast's;
    a model of a caller's own may be in `compute_dtype` itself."""

    model: nn.Module
    tokenizer: Any
    eos_ids: tuple[int, ...]
    pad_id: int
    device: torch.device
    compute_dtype: torch.dtype = torch.float32

    @property
    def network(self) -> nn.Module:
        """The model that computes: with LoRA the one that peft wraps, with the adapters in its layers."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    def encode_prompt(self, prompt: str | list[Message] | list[int]) -> list[int]:
        """Token ids of a prompt: plain text as it is, messages through the chat template; ids are what they are."""
        return encode_prompt(self.tokenizer, prompt)

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def autocast(self) -> AbstractContextManager[None]:
        """Low precision for the forward pass only; the weights stay what they are. Not where they are in it already:
        autocast would take back what such a model's own code does in fp32, the choice of experts."""
        if self.compute_dtype in (torch.float32, self.network.dtype):
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with self.autocast():
                yield
        finally:
            self.model.train(was_training)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def encode_prompt(tokenizer: Any, prompt: str | list[Message] | list[int]) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if all(isinstance(token, int) for token in prompt):
        return list(prompt)
    if tokenizer.chat_template is None:
        raise ConfigError(
            "the prompts are chat messages but the tokenizer has no chat template: "
            "set `prompt_template: r1_zero` or `plain`, or give `chat_template`"
        )
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


def load_tokenizer(cfg: ModelConfig) -> Any:
    """The tokenizer with the recipe's chat template and end token; left-padding, with a pad token."""
    from transformers import AutoTokenizer

    require_source(cfg.model_name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            cfg.model_name_or_path,
            revision=cfg.model_revision,
            trust_remote_code=cfg.trust_remote_code,
            padding_side="left",
        )
    except OSError as error:
        raise unavailable(cfg.model_name_or_path, error) from error
    if cfg.chat_template is not None:
        tokenizer.chat_template = cfg.chat_template
    if cfg.eos_token is not None:
        if tokenizer.convert_tokens_to_ids(cfg.eos_token) in (None, tokenizer.unk_token_id):
            raise ConfigError(f"eos_token {cfg.eos_token!r} is not in the tokenizer's vocabulary")
        tokenizer.eos_token = cfg.eos_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model_config(cfg: ModelConfig) -> Any:
    """Raises ConfigError where there is none, and where it is no causal language model's."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            cfg.model_name_or_path, revision=cfg.model_revision, trust_remote_code=cfg.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise unavailable(cfg.model_name_or_path, error) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not cfg.trust_remote_code:
        raise ConfigError(
            f"model_name_or_path: {cfg.model_name_or_path} is a {config.model_type}, which is no causal language model "
            "that transformers knows; give one, or set `trust_remote_code: true` where its code comes with it"
        )
    return config


def require_model(cfg: ModelConfig) -> Any:
    """The tokenizer of a causal language model whose embeddings have room for it; nothing big is loaded.

    Raises ConfigError where the folder is no such model.
    """
    tokenizer, config = load_tokenizer(cfg), load_model_config(cfg)
    rows, ids = config.get_text_config().vocab_size, len(tokenizer)
    if ids > rows:
        raise ConfigError(
            f"model_name_or_path: {cfg.model_name_or_path} has {rows} embeddings, its tokenizer {ids} tokens: they do "
            "not belong together"
        )
    return tokenizer


def load_generation_config(cfg: ModelConfig) -> Any:
    """What is published with the model; where nothing is (or `init_random`), what follows from the model's config."""
    from transformers import GenerationConfig

    if not cfg.init_random:
        with suppress(OSError):
            return GenerationConfig.from_pretrained(cfg.model_name_or_path, revision=cfg.model_revision)
    return GenerationConfig.from_model_config(load_model_config(cfg))


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> tuple[int, ...]:
    """Every id that ends a completion: the tokenizer's and all that the model declares."""
    declared = getattr(generation_config, "eos_token_id", None)
    declared = declared if isinstance(declared, (list, tuple)) else [declared]
    ids = {tokenizer.eos_token_id, *declared} - {None}
    if not ids:
        raise ConfigError("neither tokenizer nor model names an end-of-sequence token: set `eos_token`")
    return tuple(sorted(ids))


def load_policy(
    cfg: ModelConfig, adapter: AdapterConfig, *, device: torch.device, seed: int = 0, sharded: bool = False
) -> Policy:
    """Load (or, with `init_random`, build) the model in fp32, add LoRA if asked for, and move it to `device`; a model
    that is to be `sharded` stays in CPU memory, from where grpo.sharding.shard takes it."""
    tokenizer = require_model(cfg)
    model = _build(cfg, seed) if cfg.init_random else _load(cfg)
    eos_ids = stop_token_ids(tokenizer, getattr(model, "generation_config", None))
    drop_group_masks(model)
    if cfg.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if adapter.use_peft:
        model = _with_lora(model, adapter, seed, cfg.gradient_checkpointing)
    bf16 = cfg.dtype == "bfloat16" or (cfg.dtype == "auto" and device.type == "cuda")
    if bf16:
        prepare_for_autocast(model, device)
    return Policy(
        model=(model if sharded else model.to(device)).train(),
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        pad_id=tokenizer.pad_token_id,
        device=device,
        compute_dtype=torch.bfloat16 if bf16 else torch.float32,
    )


def prepare_for_autocast(model: nn.Module, device: torch.device) -> None:
    """What autocast alone gets wrong in a mixture of experts: the choice in fp32, the experts in low precision."""
    route_in_fp32(model, device)
    cast_experts(model)


def routers(model: nn.Module) -> list[nn.Module]:
    """DeepSeek-V3's gates, known by their correction bias: they choose experts in fp32 (technical report, 3.3.1). One
    that peft has wrapped comes with its adapter, which reads and replaces its weight."""
    found: dict[nn.Module, nn.Module] = {}  # gate -> its outermost wrapper, which `modules` names first
    for module in model.modules():
        gate = module.get_base_layer() if hasattr(module, "get_base_layer") else module
        if "e_score_correction_bias" in gate._buffers:
            found.setdefault(gate, module)
    return list(found.values())


def route_in_fp32(model: nn.Module, device: torch.device) -> None:
    """The gates cast to fp32 in their own code; autocast would take that back and choose other experts."""
    for router in routers(model):
        router.forward = torch.autocast(device.type, enabled=False)(router.forward)


def _load(cfg: ModelConfig) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return read_weights(
        AutoModelForCausalLM,
        cfg.model_name_or_path,
        revision=cfg.model_revision,
        trust_remote_code=cfg.trust_remote_code,
        attn_implementation=cfg.attn_implementation,
    )


def read_weights(kind: Any, name: str, *, new_head: bool = False, **settings: Any) -> nn.Module:
    """`kind.from_pretrained` in fp32. Raises ConfigError where the weights cannot be read, or lack some or have them in
    another shape, which transformers would draw at random: right for a `new_head` alone."""
    try:
        model, found = kind.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except (OSError, SafetensorError) as error:
        raise unavailable(name, error) from error
    body = f"{model.base_model_prefix}." if new_head else ""
    wrong = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if lacking := sorted(key for key in wrong if key.startswith(body)):
        raise ConfigError(
            f"model_name_or_path: the weights of {name} lack {len(lacking)} that its config.json asks for, or have "
            f"another shape there, {lacking[0]} among them: a checkpoint of another architecture, or half of one"
        )
    return model


def _build(cfg: ModelConfig, seed: int) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = load_model_config(cfg)
        return AutoModelForCausalLM.from_config(config, attn_implementation=cfg.attn_implementation).float()


def _with_lora(model: nn.Module, adapter: AdapterConfig, seed: int, checkpointing: bool) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    if checkpointing:
        model.enable_input_require_grads()
    settings = LoraConfig(
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=adapter.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, settings)
        except ValueError as error:
            raise ConfigError(
                f"lora_target_modules: got {adapter.lora_target_modules!r} with lora_dropout: {adapter.lora_dropout:g} "
                f"(peft: {error}); allowed: names of this model's modules, and a dropout above 0 for plain linear "
                "layers alone. DeepSeek-V3's experts are none: name others, such as [q_a_proj, q_b_proj, o_proj], or "
                "set lora_dropout: 0"
            ) from error
    if model.config.tie_word_embeddings and hasattr(model.get_output_embeddings(), "base_layer"):
        raise ConfigError(
            f"lora_target_modules: got {adapter.lora_target_modules!r}; the output head shares its weight with the "
            "embeddings in this model, so an adapter on it can be folded into neither: leave the head out"
        )
    return adapted
