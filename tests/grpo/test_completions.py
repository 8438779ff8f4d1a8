import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.problem import Problem
from grpo.errors import ConfigError
from grpo.monitor.completions import completion_steps, read_completions, rewind_completions, write_completions
from grpo.types import Rollout, RolloutGroup, ScoredGroup
from rewards.reward import Verdict

NAN = float("nan")


def scored_group(texts=("right", "wrong"), problem_id="p0", prompt="Q:", **changes):
    problem = Problem(id=problem_id, question="1 + 1?", answer="2", prompt=prompt, task="sum")
    rollouts = tuple(
        Rollout(prompt_ids=(1,), completion_ids=(5, 6), sampler_logprobs=(-0.1, -0.2), text=text, stop_reason="eos")
        for text in texts
    )
    scores = {
        "rewards_G": [1.1, 0.1],
        "correct_G": [True, False],
        "parts": {"accuracy": [1.0, 0.0], "format": [1.0, None]},
        "verdicts": {"accuracy": [Verdict.CORRECT, Verdict.WRONG], "format": [None, None]},
        "reasons": {"accuracy": ["", "3 is not 2"]},
        "extra": {"parsed": ["2", "3"]},
    }
    return ScoredGroup(group=RolloutGroup(problem=problem, rollouts=rollouts), **(scores | changes))


def written(run_dir, group, advantages=((1.0, -1.0),)):
    write_completions(run_dir, 0, 1, [group], torch.tensor(advantages))
    return read_completions(run_dir, 1)


def test_one_row_per_completion_with_every_column(tmp_path):
    path = write_completions(tmp_path, 3, 12, [scored_group()], torch.tensor([[0.5, -0.5]]))
    assert path == tmp_path / "completions" / "step-00000012.parquet"
    row = {
        "step": 12, "rollout": 3, "problem_id": "p0", "task": "sum", "question": "1 + 1?", "answer": "2", "sibling": 1,
        "prompt": "Q:", "completion": "wrong", "stop_reason": "eos", "length": 2, "reward": 0.1, "advantage": -0.5,
        "correct": False, "reward/accuracy": 0.0, "reward/format": None, "verdict/accuracy": "wrong",
        "verdict/format": None, "reason/accuracy": "3 is not 2", "extra/parsed": "3",
    }  # fmt: skip
    assert read_completions(tmp_path)[1] == row


def test_rows_keep_the_order_of_groups_and_their_own_advantage(tmp_path):
    groups = [scored_group(problem_id=f"p{p}") for p in range(3)]
    write_completions(tmp_path, 0, 1, groups, torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
    rows = read_completions(tmp_path)
    assert [(r["problem_id"], r["sibling"], r["advantage"]) for r in rows] == [
        (f"p{p}", g, 2.0 * p + g) for p in range(3) for g in range(2)
    ]


def test_a_masked_row_has_no_reward(tmp_path):
    rows = written(tmp_path, scored_group(rewards_G=[NAN, 0.1], correct_G=[None, False]))
    assert rows[0]["reward"] is None and rows[0]["correct"] is None and rows[1]["reward"] == 0.1


def test_a_reward_that_never_applied_keeps_its_type(tmp_path):
    written(tmp_path, scored_group(parts={"accuracy": [None, None]}))
    schema = pq.read_schema(tmp_path / "completions" / "step-00000001.parquet")
    assert str(schema.field("reward/accuracy").type) == "double"


def test_groups_may_have_different_rewards(tmp_path):
    groups = [scored_group(), scored_group(problem_id="p1", parts={"code": [0.5, 0.25]}, verdicts={}, reasons={})]
    write_completions(tmp_path, 0, 1, groups, torch.zeros(2, 2))
    rows = read_completions(tmp_path)
    assert [row["reward/code"] for row in rows] == [None, None, 0.5, 0.25]
    assert [row["reward/accuracy"] for row in rows] == [1.0, 0.0, None, None]


def test_a_chat_prompt_is_stored_as_text(tmp_path):
    chat = [{"role": "system", "content": "Think."}, {"role": "user", "content": "1 + 1?"}]
    assert written(tmp_path, scored_group(prompt=chat))[0]["prompt"] == "[system] Think.\n[user] 1 + 1?"


@given(st.text(alphabet=st.characters(codec=None)), st.text(alphabet=st.characters(codec=None)))
def test_any_model_text_is_stored(tmp_path_factory, text, reason):
    group = scored_group(texts=(text, "b\ud800"), reasons={"accuracy": [reason, ""]})
    rows = written(tmp_path_factory.mktemp("run"), group)
    assert rows[0]["completion"] == text.encode("utf-8", "backslashreplace").decode()
    assert rows[1]["completion"] == "b\\ud800"


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([1, 2], [1, 2]),
        ([0.5, None], [0.5, None]),
        ([True, False], [True, False]),
        ([1, "one"], ["1", "one"]),
        (["\ud800", None], ["\\ud800", None]),
        ([[1, 2], [3]], ["[1, 2]", "[3]"]),
        ([{(1, 2): 3}, 10**30], ["{(1, 2): 3}", str(10**30)]),
        ([None, None], [None, None]),
    ],
)
def test_extra_columns_of_any_kind(tmp_path, values, stored):
    assert [row["extra/x"] for row in written(tmp_path, scored_group(extra={"x": values}))] == stored


def test_rewind_removes_later_steps_only(tmp_path):
    for step in (1, 17, 33):
        write_completions(tmp_path, step // 16, step, [scored_group()], torch.zeros(1, 2))
    rewind_completions(tmp_path, 17)
    assert completion_steps(tmp_path) == [1, 17]
    rewind_completions(tmp_path / "no run", 0)


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def half(table, path, **_):
        Path(path).write_bytes(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="disk full"):
        write_completions(tmp_path, 0, 1, [scored_group()], torch.zeros(1, 2))
    assert os.listdir(tmp_path / "completions") == []


def test_what_is_missing_is_said_with_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match="log_completions"):
        read_completions(tmp_path)
    for step in (1, 2):
        write_completions(tmp_path, 0, step, [scored_group(problem_id=f"p{step}")], torch.zeros(1, 2))
    with pytest.raises(ConfigError, match=r"step 3 .* steps 1, 2"):
        read_completions(tmp_path, 3)
    with pytest.raises(ConfigError, match=r"'p9'.*p1"):
        completion_steps(tmp_path, "p9")
    assert completion_steps(tmp_path, "p2") == [2]
