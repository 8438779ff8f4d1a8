"""The tiny V3 and its tokenizer, loading, LoRA and the exported folder, read back by transformers itself."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DeepseekV3ForCausalLM,
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers import PreTrainedTokenizerFast as FastTokenizer

from data.templates import R1_ZERO_TEMPLATE, build_prompt
from grpo.config import AdapterConfig, ModelConfig
from grpo.errors import ConfigError
from grpo.policy.export import export_policy, load_adapter
from grpo.policy.load import Policy, encode_prompt, load_policy, load_tokenizer, stop_token_ids
from grpo.policy.tiny_v3 import THINK_TAGS, build_tiny_v3, build_tokenizer, save_tiny_v3
from recipes.tiny_corpus import PHRASES
from tests.grpo import parts
from tests.grpo.test_fast_sampler import save_dense

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> FastTokenizer:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts.save_sharp_model(tmp_path_factory.mktemp("sharp"))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    return model(torch.arange(4, 64).view(3, 20)).logits


class TestTokenizer:
    @settings(deadline=None, max_examples=300)
    @given(text=st.text(st.characters(codec="utf-8")))
    def test_any_text_round_trips(self, tokenizer: FastTokenizer, text: str) -> None:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    @settings(deadline=None)
    @given(pieces=st.lists(st.sampled_from([*THINK_TAGS, *PHRASES, " ", "12", "007", "x", "<", "\n", "é", "思"])))
    def test_tags_and_phrases_round_trip_in_any_order(self, tokenizer: FastTokenizer, pieces: list[str]) -> None:
        """Also where special tokens are skipped: the tags are part of the answer."""
        text = "".join(pieces)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text

    @pytest.mark.parametrize("text", [*THINK_TAGS, *(p for p in PHRASES if len(p) > 1), "0", "7", "10", "42", "99"])
    def test_one_token(self, tokenizer: FastTokenizer, text: str) -> None:
        assert len(tokenizer(text)["input_ids"]) == 1

    def test_long_numbers_are_cut_into_pairs_from_the_left(self, tokenizer: FastTokenizer) -> None:
        assert tokenizer.convert_ids_to_tokens(tokenizer("12345")["input_ids"]) == ["12", "34", "5"]

    def test_the_r1_zero_prompt_is_short(self, tokenizer: FastTokenizer) -> None:
        """About 25 tokens around the question, for 489 characters."""
        prompt = build_prompt(
            "State the final answer to the following arithmetic problem: 4 - 3 + 8 =", template="r1_zero"
        )
        assert len(prompt) == 489
        assert len(tokenizer(prompt)["input_ids"]) <= 35
        assert len(tokenizer(R1_ZERO_TEMPLATE.replace("{question}", ""))["input_ids"]) in range(15, 27)

    def test_special_tokens_are_skipped_and_unlike_each_other(self, tokenizer: FastTokenizer) -> None:
        ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
        assert len(set(ids)) == 3 and tokenizer.decode(ids, skip_special_tokens=True) == ""
        assert tokenizer.padding_side == "left"
        assert tokenizer("1 + 1")["input_ids"][0] != tokenizer.bos_token_id

    def test_chat_template(self, tokenizer: FastTokenizer) -> None:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text == "Be brief.\n\nUser: 1 + 1?\n\nAssistant:"
        assert encode_prompt(tokenizer, messages) == tokenizer(text)["input_ids"]
        full = [*messages, {"role": "assistant", "content": " <answer>2</answer>"}]
        assert tokenizer.apply_chat_template(full, tokenize=False) == text + " <answer>2</answer><eos>\n\n"

    def test_chat_template_marks_what_the_assistant_said(self, tokenizer: FastTokenizer) -> None:
        """For supervised training on completions only."""
        messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": " 2"}]
        encoded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        marked = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
        assert tokenizer.decode(marked) == " 2<eos>"


class TestTinyV3:
    def test_transformers_loads_the_folder_and_misses_nothing(self, tiny_model: Path) -> None:
        model, info = AutoModelForCausalLM.from_pretrained(tiny_model, output_loading_info=True)
        assert type(model) is DeepseekV3ForCausalLM
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
        assert all(p.dtype == torch.float32 for p in model.parameters())

    def test_the_config_claims_nothing_the_weights_lack(self, tiny_model: Path) -> None:
        """Multi-token prediction: transformers writes the key and creates no weights for it."""
        config = json.loads((tiny_model / "config.json").read_text())
        claims = {key: value for key, value in config.items() if "nextn" in key or "mtp" in key}
        assert claims and set(claims.values()) == {0}
        with safe_open(tiny_model / "model.safetensors", "pt") as file:
            layers = {name.split(".")[2] for name in file.keys() if name.startswith("model.layers.")}  # noqa: SIM118
        assert layers == {str(i) for i in range(config["num_hidden_layers"])}

    def test_the_seed_decides_and_no_generator_moves(self) -> None:
        tokenizer = build_tokenizer()
        state = torch.get_rng_state()
        prints = [parts.fingerprint(build_tiny_v3(tokenizer, seed=seed)) for seed in (0, 0, 1)]
        assert prints[0] == prints[1] != prints[2]
        assert torch.get_rng_state().equal(state)

    def test_sizes_can_be_changed(self, tmp_path: Path) -> None:
        save_tiny_v3(tmp_path, num_hidden_layers=2, hidden_size=32)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 32)

    def test_the_router_bias_is_a_frozen_saved_buffer_that_the_forward_honours(self, tmp_path: Path) -> None:
        """A large bias brings its expert into every choice and leaves the gate weights, so the logits change; what
        was saved comes back bit for bit."""
        policy = parts.load(parts.config(save_tiny_v3(tmp_path / "a", initializer_range=0.15)))
        name, bias = next((n, b) for n, b in policy.model.named_buffers() if "correction_bias" in n)
        assert name not in policy.trainable() and not bias.requires_grad and not bias.any()
        router = next(m for m in policy.model.modules() if type(m).__name__ == "DeepseekV3TopkRouter")
        chosen: list[torch.Tensor] = []
        router.register_forward_hook(lambda *args: chosen.append(args[2][2]))
        before = logits(policy.model)
        bias.copy_(torch.tensor([0.0, 0.0, 10.0, 0.0]))
        after = logits(policy.model)
        share = [(choice == 2).any(-1).float().mean().item() for choice in chosen]
        assert share[0] < 1 and share[1] == 1 and not before.equal(after)
        export_policy(policy, tmp_path / "b", None)
        again = parts.load(parts.config(tmp_path / "b"))
        assert dict(again.model.named_buffers())[name].tolist() == [0.0, 0.0, 10.0, 0.0]
        assert logits(again.model).equal(after)

    def test_training_leaves_the_router_bias_alone(self, sharp: Path) -> None:
        learner = parts.learner(parts.config(sharp, learning_rate=1e-2))
        bias = next(b for n, b in learner.policy.model.named_buffers() if "correction_bias" in n)
        batch = parts.random_batch(learner.policy)
        from grpo.step import update_policy

        update_policy(learner.policy, batch, learner.optimizer, learner.cfg, parts.ONE_PROCESS)
        assert bias.tolist() == torch.tensor([0.4, -0.4, 0.1, 0.0]).tolist()


class TestLoading:
    def test_what_is_saved_names_its_router_as_vllm_asks_for_it(self, sharp: Path, tmp_path: Path) -> None:
        policy = load_policy(ModelConfig(model_name_or_path=str(sharp)), AdapterConfig(), device=CPU)
        for name in ("topk_method", "scoring_func"):
            delattr(policy.model.config, name)  # transformers' own configs have neither
        export_policy(policy, tmp_path, None)
        written = json.loads((tmp_path / "config.json").read_text())
        assert (written["topk_method"], written["scoring_func"]) == ("noaux_tc", "sigmoid")
        again = load_policy(ModelConfig(model_name_or_path=str(tmp_path)), AdapterConfig(), device=CPU)
        assert all(value.equal(again.model.state_dict()[name]) for name, value in policy.model.state_dict().items())

    def test_weights_are_fp32_and_the_compute_type_is_autocasts(self, tmp_path: Path, sharp: Path) -> None:
        AutoModelForCausalLM.from_pretrained(sharp, dtype=torch.bfloat16).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(sharp).save_pretrained(tmp_path)
        for dtype, compute in [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)]:
            policy = load_policy(
                ModelConfig(model_name_or_path=str(tmp_path), dtype=dtype), AdapterConfig(), device=CPU
            )
            assert policy.compute_dtype == compute and policy.model.training
            assert all(p.dtype == torch.float32 for p in policy.model.parameters())

    def test_init_random_depends_on_the_seed_and_not_on_the_weights(self, sharp: Path) -> None:
        cfg = ModelConfig(model_name_or_path=str(sharp), init_random=True)
        state = torch.get_rng_state()
        prints = [
            parts.fingerprint(load_policy(cfg, AdapterConfig(), device=CPU, seed=seed).model) for seed in (0, 0, 1)
        ]
        assert prints[0] == prints[1] != prints[2]
        assert torch.get_rng_state().equal(state)
        assert parts.fingerprint(AutoModelForCausalLM.from_pretrained(sharp)) not in prints

    def test_stop_tokens_are_the_tokenizers_and_all_the_model_declares(self, tokenizer: FastTokenizer) -> None:
        assert stop_token_ids(tokenizer) == (2,)
        assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=7)) == (2, 7)
        assert stop_token_ids(tokenizer, GenerationConfig(eos_token_id=[9, 2, 5])) == (2, 5, 9)

    def test_an_eos_token_of_the_recipe(self, tiny_model: Path) -> None:
        cfg = ModelConfig(model_name_or_path=str(tiny_model), eos_token="</answer>")
        assert load_tokenizer(cfg).eos_token == "</answer>"
        with pytest.raises(ConfigError, match="<nowhere>"):
            load_tokenizer(replace(cfg, eos_token="<nowhere>"))

    def test_a_chat_template_of_the_recipe_and_its_absence(self, tiny_model: Path) -> None:
        cfg = ModelConfig(model_name_or_path=str(tiny_model), chat_template="{{ messages[0]['content'] }}!")
        messages = [{"role": "user", "content": "hi"}]
        tokenizer = load_tokenizer(cfg)
        assert tokenizer.decode(encode_prompt(tokenizer, messages)) == "hi!"
        tokenizer.chat_template = None
        with pytest.raises(ConfigError, match="chat_template"):
            encode_prompt(tokenizer, messages)

    def test_a_tokenizer_without_a_pad_takes_its_eos(self, tiny_model: Path, tmp_path: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path)
        assert load_tokenizer(ModelConfig(model_name_or_path=str(tmp_path))).pad_token == "<eos>"


def moved_lora(model: Path, **keys: Any) -> Policy:
    """A policy whose adapter is far from zero."""
    policy = parts.load(parts.config(model, use_peft=True, lora_r=4, **keys))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.trainable().items():
            if "lora_B" in name:
                parameter.copy_(0.03 * torch.randn(parameter.shape, generator=generator))
    return policy


class TestLora:
    def test_the_merged_export_is_a_plain_model_with_the_same_logits(self, sharp: Path, tmp_path: Path) -> None:
        """1e-5; the policy itself is not merged."""
        policy = moved_lora(sharp)
        before = parts.fingerprint(policy.model)
        export_policy(policy, tmp_path, None, merge=True)
        assert parts.fingerprint(policy.model) == before
        merged, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert type(merged) is DeepseekV3ForCausalLM and not info["missing_keys"] and not info["unexpected_keys"]
        expected = logits(policy.model)
        torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(sharp)
        assert (logits(base) - expected).abs().max() > 0.1
        assert AutoTokenizer.from_pretrained(tmp_path).chat_template
        assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 0

    def test_merging_from_whole_weights_is_merging_the_policy(self, sharp: Path, tmp_path: Path) -> None:
        """What a sharded policy does, whose own parameters cannot be merged; the oracle is peft's merge of a copy."""
        policy = moved_lora(sharp)
        weights = {name: value.clone() for name, value in policy.model.state_dict().items()}
        export_policy(policy, tmp_path / "policy", None, merge=True)
        export_policy(policy, tmp_path / "weights", weights, merge=True)
        deepcopy(policy.model).merge_and_unload().save_pretrained(tmp_path / "peft")
        theirs, *ours = (load_file(tmp_path / name / "model.safetensors") for name in ("peft", "weights", "policy"))
        for merged in ours:
            assert merged.keys() == theirs.keys()
            assert all(torch.equal(merged[name], theirs[name]) for name in theirs)
        for name in ("config.json", "generation_config.json"):
            assert (tmp_path / "weights" / name).read_text() == (tmp_path / "policy" / name).read_text()

    def test_embeddings_that_are_the_head_too_stay_one(self, tmp_path: Path) -> None:
        save_dense(tmp_path / "base", Qwen2ForCausalLM, Qwen2Config, tie_word_embeddings=True)
        policy = moved_lora(tmp_path / "base")
        export_policy(policy, tmp_path / "merged", None, merge=True)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert merged.lm_head.weight is merged.model.embed_tokens.weight
        torch.testing.assert_close(logits(merged), logits(policy.model), rtol=1e-5, atol=1e-5)
        with pytest.raises(ConfigError, match=r"lora_target_modules: got \['lm_head'\].*leave the head out"):
            parts.load(parts.config(tmp_path / "base", use_peft=True, lora_target_modules=["lm_head"]))

    def test_a_dropout_that_peft_has_no_layer_for_is_refused(self, sharp: Path) -> None:
        with pytest.raises(ConfigError, match=r"lora_dropout: 0\.1.*lora_dropout: 0"):
            parts.load(parts.config(sharp, use_peft=True, lora_dropout=0.1))
        with pytest.raises(ConfigError, match="lora_target_modules: got \\['nowhere'\\]"):
            parts.load(parts.config(sharp, use_peft=True, lora_target_modules=["nowhere"]))

    def test_the_adapter_alone_goes_back_into_a_fresh_policy(self, sharp: Path, tmp_path: Path) -> None:
        policy = moved_lora(sharp)
        export_policy(policy, tmp_path, None)
        assert not (tmp_path / "model.safetensors").exists()
        fresh = parts.load(parts.config(sharp, use_peft=True, lora_r=4, seed=5))
        assert parts.fingerprint(fresh.model) != parts.fingerprint(policy.model)
        load_adapter(fresh, tmp_path)
        assert parts.fingerprint(fresh.model) == parts.fingerprint(policy.model)

    def test_it_starts_as_the_base_and_its_first_matrices_depend_on_the_seed(self, sharp: Path) -> None:
        policies = [parts.load(parts.config(sharp, use_peft=True, lora_r=4, seed=seed)) for seed in (0, 0, 1)]
        base = AutoModelForCausalLM.from_pretrained(sharp)
        torch.testing.assert_close(logits(policies[0].model), logits(base), rtol=0, atol=1e-5)
        prints = [parts.fingerprint(policy.model) for policy in policies]
        assert prints[0] == prints[1] != prints[2]

    def test_target_modules(self, sharp: Path) -> None:
        policy = parts.load(parts.config(sharp, use_peft=True, lora_r=4, lora_target_modules=["o_proj", "q_b_proj"]))
        assert {name.split(".")[-4] for name in policy.trainable()} == {"o_proj", "q_b_proj"}
