"""Prompts that nothing can be sampled from are found before a run begins, and quickly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from grpo import prompts
from grpo.config import RunConfig
from grpo.errors import ConfigError
from grpo.policy.load import encode_prompt, load_tokenizer
from grpo.policy.tiny_v3 import CHAT_TEMPLATE, build_tokenizer
from grpo.prompts import most_tokens
from grpo.setup import load_data
from grpo.types import Problem
from rewards.rubric import Rubric
from tests.grpo import parts

CONTEXT = 4096  # of the tiny model, whose tokenizer takes most characters for a token
COUNT = 700  # of which every second is measured for estimates


def by_bytes(normalizer: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE that merges nothing: as many tokens as a text can have."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    core.normalizer, core.pre_tokenizer = normalizer, pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHAT_TEMPLATE, eos_token="<eos>")


def by_pieces() -> PreTrainedTokenizerFast:
    """SentencePiece's way: a blank in front, bytes for what it has no piece for, and special tokens around all."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    core = Tokenizer(
        models.BPE(vocab={p: n for n, p in enumerate(pieces)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.decoder = decoders.ByteFallback()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", pieces.index("<s>")), ("</s>", pieces.index("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHAT_TEMPLATE, eos_token="</s>")


TOKENIZERS = {
    "bytes": by_bytes(None), "bytes, composed": by_bytes(normalizers.NFC()), "pieces": by_pieces(),
    "bytes, compatible": by_bytes(normalizers.NFKC()), "tiny": build_tokenizer(),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(min_size=1) | st.text("\ufdfa\u0958\U0001d15e \u00e9\u2581\ud55c", min_size=1))
def test_no_prompt_has_more_tokens_than_its_bytes_allow(name: str, text: str) -> None:
    """The second alphabet's letters become longer as tokenizers bring them into a normal form, by 11 times at most."""
    for prompt in (text, [{"role": "user", "content": text}]):
        length = len(encode_prompt(TOKENIZERS[name], prompt))
        assert length <= most_tokens(TOKENIZERS[name], prompt)
        if name == "bytes" and text.isascii():
            assert length >= most_tokens(TOKENIZERS[name], prompt) - 1, "and not far from it"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The prompts that the module tokenizes."""
    found: list[Any] = []

    def spy(tokenizer: Any, prompt: Any) -> list[int]:
        found.append(prompt)
        return encode_prompt(tokenizer, prompt)

    monkeypatch.setattr(prompts, "encode_prompt", spy)
    return found


def config_with(model: Path, folder: Path, long: dict[int, int], **keys: Any) -> RunConfig:
    """COUNT problems; `long`: problem -> letters of its prompt, a token each and two more."""
    for split in ("train", "test"):
        rows = [{"prompt": "x" * long.get(n, 10), "answer": "1"} for n in range(COUNT)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"dataset_name": str(folder), "dataset_train_split": "train", "prompt_template": "plain"}
    return parts.config(model, **names, **keys)


def loaded(cfg: RunConfig) -> list[Problem]:
    return load_data(cfg, load_tokenizer(cfg.model), Rubric(())).train


@pytest.mark.parametrize(
    ("keys", "letters", "message"),
    [
        ({}, CONTEXT, r"2 of 700 prompts have more than 4095 tokens, the longest \d+, .*model's context of 4096"),
        ({"max_tokens_in_flight": 1000}, 995, r"2 of 700 prompts have more than 992 .*max_tokens_in_flight: 1000"),
        (
            {"max_tokens_in_flight": 1000, "schedule": [{"update": 9, "max_completion_length": 500}]},
            501,
            "more than 500 tokens",
        ),
    ],
    ids=["context", "budget", "later budget"],
)
def test_a_prompt_without_room_is_refused_at_the_start(
    tiny_model: Path, tmp_path: Path, keys: dict[str, Any], letters: int, message: str
) -> None:
    """Though it is none of those that estimates are made from; the key that the message names lets the rest train."""
    cfg = config_with(tiny_model, tmp_path, {301: letters, 501: letters}, **keys)
    with pytest.raises(ConfigError, match=message) as refused:
        loaded(cfg)
    named = int(str(refused.value).split("max_prompt_length: ")[1].split()[0])
    cfg = config_with(tiny_model, tmp_path, {301: letters, 501: letters}, **keys, max_prompt_length=named)
    assert len(loaded(cfg)) == COUNT - 2


def test_the_reference_engine_has_no_budget(tiny_model: Path, tmp_path: Path) -> None:
    cfg = config_with(tiny_model, tmp_path, {301: 995}, max_tokens_in_flight=1000, sampler="reference")
    assert len(loaded(cfg)) == COUNT


def test_where_the_fast_engine_does_not_know_the_family_there_is_no_budget_either(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path / "gpt2")
    sizes = {"vocab_size": len(build_tokenizer()), "n_positions": CONTEXT, "n_embd": 8, "n_layer": 1, "n_head": 1}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    cfg = config_with(tmp_path / "gpt2", tmp_path, {301: 995}, max_tokens_in_flight=1000)
    assert len(loaded(cfg)) == COUNT


def test_a_held_out_prompt_without_room_is_refused_too(tiny_model: Path, tmp_path: Path) -> None:
    keys = {"dataset_test_split": "test", "eval_steps": 5, "eval_problems": COUNT}
    cfg = config_with(tiny_model, tmp_path, {301: CONTEXT}, **keys)
    with pytest.raises(ConfigError, match="2 of 1400 prompts"):
        loaded(cfg)


def test_only_what_may_be_too_long_is_tokenized(tiny_model: Path, tmp_path: Path, encoded: list[Any]) -> None:
    cfg = config_with(tiny_model, tmp_path, {301: 490, 501: 520}, max_prompt_length=500)
    assert len(loaded(cfg)) == COUNT - 1
    assert len(encoded) <= COUNT // 2 + 2 and len([prompt for prompt in encoded if len(prompt) > 10]) <= 3
