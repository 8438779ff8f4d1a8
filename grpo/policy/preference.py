"""A preference model as a reward: a sequence classifier with one output (DeepSeek-R1, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from rewards.format import visible
from rewards.reward import Reward, RewardError, Verdict
from rewards.text import Conversation, as_messages, readable, split_thinking, untagged

Part = Literal["answer", "all"]


def judged_part(text: str, part: Part) -> str:
    """What of a completion is judged: what follows the thinking, without R1's tags, or all of it."""
    return (text if part == "all" else untagged(split_thinking(text)[1])).strip()


def conversation_ids(tokenizer: Any, prompt: Conversation, answer: str) -> list[int]:
    """A prompt and its answer as a preference model reads them, in training and as a reward."""
    asked = as_messages(prompt)
    if tokenizer.chat_template is None:
        return tokenizer("\n".join(str(message["content"]) for message in asked) + answer)["input_ids"]
    messages = [*asked, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]


@dataclass(frozen=True, kw_only=True)
class PreferenceModel:
    """The model's one logit, as it is.

    model_name_or_path: a folder or Hub id that `AutoModelForSequenceClassification` loads with `num_labels=1`, such as
    recipes.train_preference_model makes; each process has its own copy, on its own device, loaded at the first call.
    part: `answer` scores what follows the thinking, without R1's tags (its helpfulness), `all` the whole completion
    (its harmlessness). dtype: of the weights; auto is bfloat16 on a GPU, float32 elsewhere. max_length: tokens; None is
    what the model was built for.

    A prompt too long is cut at its start. An answer that alone is too long, or empty, gets the lowest score of its call
    and the verdict `wrong`: saying more than can be judged must not pay.
    Raises RewardError when the model cannot be found or has more than one output.
    """

    model_name_or_path: str
    model_revision: str = "main"
    part: Part = "answer"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    batch_size: int = 8
    max_length: int | None = None
    __name__ = "preference_model"
    runs = "main"  # it shares the process's device, and its floor is the lowest score of the whole call
    needs = "it loads a model"

    def __post_init__(self) -> None:
        labels = self._config.num_labels
        if labels != 1:
            raise RewardError(
                f"preference_model: {self.model_name_or_path!r} has {labels} outputs, a preference model has 1 "
                "(a language model without such a head is no preference model)"
            )
        if self.part not in ("answer", "all"):
            raise RewardError(f"preference_model: part is 'answer' or 'all', got {self.part!r}")

    def __call__(
        self, *, prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any
    ) -> list[Reward]:
        rows = [self._token_ids(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        judged = [index for index, ids in enumerate(rows) if ids is not None]
        scores = dict(zip(judged, self._scores([rows[index] for index in judged]), strict=True))
        lowest = min([0.0, *scores.values()])
        unjudged = Reward(score=lowest, verdict=Verdict.WRONG, reason="nothing to judge, or longer than max_length")
        return [Reward(score=scores[index]) if index in scores else unjudged for index in range(len(rows))]

    def _token_ids(self, prompt: Conversation, completion: Conversation) -> list[int] | None:
        """The conversation as the model was trained to read it; None for an answer that cannot be judged."""
        answer = judged_part(readable(prompt, completion), self.part)
        if not visible(untagged(answer)) or len(self.tokenizer(answer)["input_ids"]) > self._limit:
            return None
        return conversation_ids(self.tokenizer, prompt, answer)[-self._limit :]

    @torch.no_grad()
    def _scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(rows), self.batch_size):
            batch = self.tokenizer.pad(
                {"input_ids": list(rows[start : start + self.batch_size])}, padding=True, return_tensors="pt"
            )
            scores += self.model(**batch.to(self.model.device)).logits[:, 0].float().tolist()
        return scores

    @property
    def _limit(self) -> int:
        return self.max_length or getattr(self._config, "max_position_embeddings", None) or 8192

    @cached_property
    def _config(self) -> Any:
        from transformers import AutoConfig

        return self._found(AutoConfig)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._found(AutoTokenizer)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(
            self.dtype, torch.bfloat16 if device.type == "cuda" else torch.float32
        )
        model = self._found(AutoModelForSequenceClassification, dtype=dtype)
        model.config.use_cache = False  # nothing is generated; gigabytes for a long row of a large model
        model.config.pad_token_id = self.tokenizer.pad_token_id  # by which it finds the last token of a padded row
        return model.to(device).eval()

    def _found(self, kind: Any, **settings: Any) -> Any:
        try:
            return kind.from_pretrained(self.model_name_or_path, revision=self.model_revision, **settings)
        except (OSError, ValueError) as error:
            told = str(error).splitlines()[0][:300]
            raise RewardError(
                f"preference_model: cannot load {self.model_name_or_path!r} ({told}); give a folder in Hugging Face "
                "format, or a Hub id that can be reached from here"
            ) from error
