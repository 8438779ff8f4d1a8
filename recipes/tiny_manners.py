"""The tiny world's general task: to tell something about a topic, rightly, politely and briefly.

    python -m recipes.tiny_manners --output_dir runs/manners

writes requests (`general_{train,test}.jsonl`) and pairs of answers of which somebody preferred one
(`pairs_{train,test}.jsonl`). A preference model learns from the pairs alone; `manners`, what the pairs come from, is
only for measuring afterwards.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from grpo.config.parse import parse_flat
from grpo.files import write_text_atomic
from recipes.command import exit_code
from rewards.text import Conversation, prompt_text, readable_rows, split_thinking, untagged

FACTS = {
    "apples": "Apples grow on trees. ",
    "bread": "Bread is made of flour. ",
    "cats": "Cats like to sleep. ",
    "chess": "Chess is a game for two. ",
    "clouds": "Clouds are made of water. ",
    "coffee": "Coffee keeps people awake. ",
    "glass": "Glass is made of sand. ",
    "honey": "Honey comes from bees. ",
    "ice": "Ice is frozen water. ",
    "milk": "Milk comes from cows. ",
    "paper": "Paper is made of wood. ",
    "rain": "Rain falls from clouds. ",
    "salt": "Salt comes from the sea. ",
    "snow": "Snow is white and cold. ",
    "tea": "Tea is made of leaves. ",
    "wool": "Wool comes from sheep. ",
}
NAMES = (
    *("Ada", "Ann", "Ben", "Bob", "Cem", "Dan", "Eva", "Fay", "Gus", "Ian", "Ida", "Ivy", "Jon", "Kai"),
    *("Lea", "Leo", "Liv", "Max", "Mia", "Noa", "Oda", "Pia", "Ray", "Sam", "Tia", "Tom", "Uma", "Zoe"),
)
REQUESTS = (
    "Please tell me about {topic}.",
    "Can you say something about {topic}?",
    "I would like to hear about {topic}.",
    "What do you know about {topic}?",
)
POLITE = ("Of course. ", "Gladly. ", "Thank you for asking. ", "I hope this helps. ")
RUDE = ("What a silly question. ", "Ask somebody else. ", "I am busy. ", "Now go away. ")
SENTENCES = (*FACTS.values(), *POLITE, *RUDE)
BRIEF = 3  # sentences
STEEPNESS = 8.0  # of the preference: a quarter of the scale apart, the better answer is chosen in 88 % of the pairs


@dataclass(frozen=True, kw_only=True)
class MannersConfig:
    """Requests and pairs of the general task."""

    output_dir: str  # where the four files are written
    pairs: int = 4000  # of answers, for training; a tenth of them more for testing
    heldout_share: float = 0.2  # of the requests
    seed: int = 0  # of the answers and of the choices between them


def requests() -> Iterator[tuple[str, str]]:
    """Every (request, topic)."""
    for topic, name, request in product(FACTS, NAMES, REQUESTS):
        yield f"I am {name}. {request.format(topic=topic)}", topic


TOPICS = dict(requests())


def answer(topic: str, rng: random.Random) -> str:
    """What somebody of no particular manners says: right or beside the point, kind, plain or rude, brief or not."""
    said = FACTS[topic] if rng.random() < 0.7 else rng.choice(list(FACTS.values()))
    tone = rng.choices((POLITE, RUDE, ()), (0.35, 0.35, 0.3))[0]
    before = [rng.choice(tone[:3]) for _ in range(rng.choice((0, 1, 1, 1, 2, 4)))] if tone else []
    after = [tone[3]] * rng.choice((0, 0, 1)) if tone else []
    return "".join([*before, *([said] if rng.random() < 0.85 else []), *after]).strip()


def measure(topic: str, text: str) -> float:
    """How good an answer is, from 0 to 1: half for the right fact and no other, the rest for a kind word and for
    brevity; nothing for rudeness or for saying nothing."""
    sentences = _sentences(text)
    if not sentences or any(sentence in RUDE for sentence in sentences):
        return 0.0
    facts = {sentence for sentence in sentences if sentence not in POLITE}
    right, kind = facts == {FACTS[topic]}, any(sentence in POLITE for sentence in sentences)
    return 0.5 * right + 0.25 * kind + 0.25 * (len(sentences) <= BRIEF)


def manners(*, prompts: Sequence[Conversation], completions: Sequence[Conversation], **_: Any) -> list[float | None]:
    """`measure` of what follows the thinking; None for other tasks. For evaluation only: no stage trains on it."""
    topics = [topic_of(prompt_text(prompt)) for prompt in prompts]
    texts = [untagged(split_thinking(text)[1]) for text in readable_rows(prompts, completions)]
    return [None if topic is None else measure(topic, text) for topic, text in zip(topics, texts, strict=True)]


def topic_of(prompt: str) -> str | None:
    """What a request of this task is about; None for any other prompt."""
    return next((topic for request, topic in TOPICS.items() if request in prompt), None)


def pair(request: str, topic: str, rng: random.Random) -> dict[str, str]:
    """Two different answers, of which the better one was probably chosen (Bradley-Terry)."""
    first, second = answer(topic, rng), answer(topic, rng)
    while second == first:
        second = answer(topic, rng)
    gap = measure(topic, first) - measure(topic, second)
    chosen, rejected = (first, second) if rng.random() < 1 / (1 + math.exp(-STEEPNESS * gap)) else (second, first)
    return {"prompt": request, "chosen": chosen, "rejected": rejected}


def main(argv: list[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else argv
    return exit_code(lambda: write_manners(parse(given)))


def parse(argv: Sequence[str]) -> MannersConfig:
    return parse_flat(argv, MannersConfig)


def write_manners(cfg: MannersConfig) -> int:
    folder, rng = Path(cfg.output_dir), random.Random(cfg.seed)
    folder.mkdir(parents=True, exist_ok=True)
    split: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for request, topic in requests():
        share = int.from_bytes(hashlib.sha256(request.encode()).digest()[:4], "big") / 2**32
        split["test" if share < cfg.heldout_share else "train"].append((request, topic))
    for name, asked in split.items():
        _write(folder / f"general_{name}.jsonl", [{"prompt": request, "task": "general"} for request, _ in asked])
        count = cfg.pairs if name == "train" else cfg.pairs // 10
        _write(folder / f"pairs_{name}.jsonl", [pair(*rng.choice(asked), rng) for _ in range(count)])
    return 0


def _write(path: Path, rows: Sequence[dict[str, str]]) -> None:
    write_text_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{path}: {len(rows)} rows")


def _sentences(text: str) -> list[str]:
    return [f"{sentence.strip()}. " for sentence in text.split(".") if sentence.strip()]


if __name__ == "__main__":
    sys.exit(main())
