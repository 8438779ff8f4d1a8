"""GSM8K from the file to the weights: the command that README gives for one's own data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch

from grpo.config import AdapterConfig, ModelConfig
from grpo.monitor.completions import read_completions
from grpo.monitor.metrics import read_metrics
from grpo.policy.load import load_policy
from recipes import gsm8k_traces, r1_zero
from recipes.lineage import fingerprint_of

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "--config recipes/configs/tiny_v3/gsm8k_smoke.yaml --dataset_name gsm8k:path/to/gsm8k_train.jsonl"


@pytest.mark.normal
def test_three_real_updates(
    shared_data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    command = COMMAND.replace("path/to/gsm8k_train.jsonl", str(shared_data / "gsm8k_train.jsonl"))
    argv = [*shlex.split(command), "--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path)]
    assert r1_zero.main(argv) == 0

    shown = capfd.readouterr()
    assert "7473 rows read, 7473 problems kept" in shown.out + shown.err
    assert "1312 prompts over max_prompt_length=320 tokens were dropped" in shown.out + shown.err
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line["grad_norm"] > 0 and line["skipped_updates"] == 0 for line in lines)

    rows = read_completions(tmp_path)
    assert len(rows) == 3 * 2 * 4 and {row["task"] for row in rows} == {"gsm8k"}
    assert all(row["answer"].lstrip("-").replace(".", "").isdigit() for row in rows)
    start, end = (
        load_policy(cfg, AdapterConfig(), device=torch.device("cpu"), seed=0).model
        for cfg in (
            ModelConfig(model_name_or_path=str(tiny_model), init_random=True),
            ModelConfig(model_name_or_path=str(tmp_path / "final")),
        )
    )
    before, after = dict(start.named_parameters()), dict(end.named_parameters())
    assert before.keys() == after.keys()
    assert [name for name in before if before[name].equal(after[name])] == []


def test_traces_say_what_they_were_made_from(tmp_path: Path) -> None:
    path, rows = tmp_path / "train.jsonl", tmp_path / "rows"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"}))
    command = f"--dataset_name gsm8k:{path} --output_dir {rows}".split()
    assert gsm8k_traces.main(command) == 0
    lineage = json.loads((rows / "lineage.json").read_text())
    assert lineage["inputs"] == {"problems": {"name": str(path), "sha256": fingerprint_of(path)}}
    assert (lineage["stage"], lineage["counts"], lineage["config"]["dataset_name"]) == (
        "gsm8k_traces", {"rows": 1}, f"gsm8k:{path}",
    )  # fmt: skip
    (shard,) = rows.glob("*.parquet")
    made = shard.stat().st_mtime_ns
    assert gsm8k_traces.main(command) == 2
    assert gsm8k_traces.main([*command, "--resume", "auto"]) == 0 and shard.stat().st_mtime_ns == made
    assert gsm8k_traces.main([*command, "--resume", "auto", "--prompt_template", "plain"]) == 2
    assert list(rows.glob("*.parquet")) == [shard]
