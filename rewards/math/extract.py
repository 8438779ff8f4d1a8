"""Which part of a completion is the answer. Never raises, linear in the length of the text."""

from __future__ import annotations

import re

TAIL = 10_000  # characters of the text that are searched: an answer stands at its end
END_OF_TURN = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|end_of_text|user)\|>|<｜(?:end▁of▁sentence|User)｜>")
PHRASE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)[\s*]*", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.(?:\s|\**$)")
JOINED = re.compile(r"[\s$,;.]*(?:\b(?:or|and)\b|\\text\{\s*(?:or|and)\s*\})?[\s$]*")
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def extract_answer(text: str, *, allow_last_number: bool = False) -> str | None:
    """The final answer stated after the thinking, or None.

    Tried in order: the last `<answer>` (and inside it the forms that follow), the last `\\boxed{}` (with those listed
    beside it: "\\boxed{1} and \\boxed{2}" is one answer of two values), the last `####` line, the last "answer is".
    The last number in the text counts only if `allow_last_number`. Unfinished thinking holds no answer.
    """
    said = _after_thinking(text)
    if "</answer>" in said:
        return tagged_answer(text, look_inside=True)
    answer = marked_answer(said)
    if answer is None and allow_last_number and (numbers := NUMBER.findall(said)):
        answer = numbers[-1].rstrip(",")
    return answer


def tagged_answer(text: str, *, look_inside: bool = False) -> str | None:
    """What stands in the last closed `<answer>` after the thinking; None if there is none or it is empty."""
    said = _after_thinking(text)
    end = said.rfind("</answer>")
    start = said.rfind("<answer>", 0, max(end, 0))
    if start < 0:
        return None
    inside = said[start + len("<answer>") : end].strip()
    return (look_inside and marked_answer(inside)) or inside or None


def marked_answer(text: str) -> str | None:
    """The last box, `####` line or "answer is" of `text`, in this order of preference."""
    boxes = _boxes(text)
    if boxes:
        return _last_boxes(text, boxes) or None
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip() or None
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        return None
    line = text[phrases[-1].end() :].partition("\n")[0]
    return SENTENCE_END.split(line, maxsplit=1)[0].strip(" *").strip() or None


def extract_gold(text: str) -> str:
    """The answer inside a worked solution (a box or a `####` line); the text itself if it has neither."""
    marked = marked_answer(text) if "\\boxed" in text or "\\fbox" in text or "####" in text else None
    return (marked or text).strip()


def _after_thinking(text: str) -> str:
    text = END_OF_TURN.split(text, maxsplit=1)[0]
    closed = text.rfind("</think>")
    if text.rfind("<think>") > closed:
        return ""
    return text[closed + len("</think>") if closed >= 0 else 0 :][-TAIL:]


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of every balanced \boxed{...} and \fbox{...}, in the order of their ends."""
    found, opened = [], []
    skip = False
    for index, character in enumerate(text):
        if skip or character == "\\":
            skip = character == "\\" and not skip
        elif character == "{":
            opened.append(index)
        elif character == "}" and opened:
            start = opened.pop()
            command = next((c for c in ("\\boxed", "\\fbox") if text.endswith(c, 0, start)), None)
            if command:
                found.append((start - len(command), index + 1, text[start + 1 : index].strip()))
    return found


def _last_boxes(text: str, boxes: list[tuple[int, int, str]]) -> str:
    start, _, content = boxes[-1]
    contents = [content]
    for earlier_start, earlier_end, earlier in reversed(boxes[:-1]):
        if earlier_end > start or not JOINED.fullmatch(text, earlier_end, start):
            break
        contents.insert(0, earlier)
        start = earlier_start
    return ", ".join(dict.fromkeys(filter(None, contents)))
