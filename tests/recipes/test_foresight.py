"""Columns and claims that cannot be are told before the first stage of a chain runs."""

from pathlib import Path
from typing import Any

import pytest

from grpo.config.coerce import dump_yaml
from recipes import pipeline
from recipes.chaining.chain import Stage
from recipes.chaining.foresight import missing_files

ASKED = [
    {"dataset_name": "gym:chain_sum", "name": "sums"},
    {"dataset_name": "gym:gcd", "name": "gcd", "num_generations": 4},
]
ACCURACY = {"figure": "pass@1", "benchmarks": ["sums", "gcd"]}


def read(folder: Path, *, base: dict[str, Any], **keys: Any) -> int:
    """The exit code of a dry run; sums are sampled 16 times, gcd 4 times."""
    rl = {"recipe": "r1_zero", "model_name_or_path": "nowhere", "dataset_name": "gym:gcd", "reward_funcs": ["gym"]}
    tables = {"table": {"R1": "rl", "Base": {"model_name_or_path": "nowhere", **base}}}
    path = folder / "pipeline.yaml"
    given = {
        "output_dir": str(folder / "run"),
        "stages": {"rl": rl},
        "evaluation": {"benchmarks": ASKED},
        "tables": tables,
    }
    path.write_text(dump_yaml(given | keys), encoding="utf-8")
    return pipeline.main(["--config", str(path), "--dry_run"])


def of(figure: str, *benchmarks: str) -> dict[str, Any]:
    return {"columns": {"a": {"figure": figure, "benchmarks": list(benchmarks)}}}


def claimed(column: str, better: str = "R1", worse: str | None = None) -> dict[str, Any]:
    return {"claims": [{"better": better, "worse": worse, "column": column}]}


@pytest.mark.parametrize(
    ("keys", "base", "said"),
    [
        ({"columns": {"accuracy": ACCURACY}} | claimed("accuracy", "RI"), {}, "no row 'RI'; there are R1, Base."),
        ({"columns": {"accuracy": ACCURACY}} | claimed("accuracy", "R1", "Bse"), {}, "Did you mean 'Base'"),
        ({"columns": {"accuracy": ACCURACY}} | claimed("acuracy"), {}, "no column 'acuracy'; there are accuracy"),
        (of("pass@1", "gcd") | claimed("a", "R1", "Base"), {"benchmarks": ASKED[:1]}, "Base is not asked 'gcd'"),
        (of("pass@1", "sums", "summs"), {}, "columns: a: no benchmark 'summs'; there are gcd, sums"),
        (of("pass@64", "sums"), {}, "columns: a: R1: no figure 'pass@64' where a problem has 16 samples"),
        (of("pass@16", "sums", "gcd"), {}, "no figure 'pass@16' where a problem has 4 samples"),
        (of("cons@4", "sums"), {}, "no figure 'cons@4' where a problem has 16 samples"),
        (of("cons@16", "sums"), {"num_generations": 8}, "columns: a: Base: no figure 'cons@16' where a problem has 8"),
        (of("format", "sums"), {}, "no figure 'format'"),
        (claimed("sums pass@2"), {}, "no column 'sums pass@2'; there are sums pass@1"),
        (claimed("sum reward/x"), {}, "no column 'sum reward/x'"),
    ],
)
def test_what_the_tables_cannot_say_is_told(
    keys: dict, base: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(tmp_path, base=base, **keys) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "base"),
    [
        ({"columns": {"accuracy": ACCURACY}} | claimed("accuracy", "R1", "Base"), {}),
        (of("cons@16", "sums"), {"benchmarks": ASKED[1:]}),
        (of("pass@4", "sums", "gcd"), {}),
        (of("reward/anything", "sums"), {}),
        (claimed("gcd cons@4", "R1", "Base"), {}),
        (claimed("sums reward/anything"), {}),
    ],
)
def test_what_they_can_say_is_not_refused(keys: dict, base: dict, tmp_path: Path) -> None:
    assert read(tmp_path, base=base, **keys) == 0


def test_data_files_that_nobody_brought_are_named_however_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for brought in ("rows_train.jsonl", "[x].csv"):
        Path(brought).touch()
    keys = {
        "dataset_mixture": [{"dataset_name": "rows_{split}.jsonl"}, {"dataset_name": "a_{split}.jsonl"}],
        "benchmarks": ["gsm8k:b.parquet", "math500:[x].csv", "aime24", {"dataset_name": "c.json", "name": "rows.json"}],
        "mix_dataset": "$made/rows.jsonl", "samples": "d.csv", "system_prompt": "Write e.json", "dataset_name": "hub/f",
    }  # fmt: skip
    assert missing_files([Stage(name="sft", recipe="cold_start_sft", keys=keys)]) == [
        "sft: dataset_name: no file 'a_{split}.jsonl'",
        "sft: benchmarks: no file 'gsm8k:b.parquet'",
        "sft: dataset_name: no file 'c.json'",
        "sft: samples: no file 'd.csv'",
    ]


def test_completions_from_a_file_say_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "said.jsonl"
    rows.write_text('{"prompt": "1 + 1?", "answer": "2", "completion": ["2", "3"]}\n', encoding="utf-8")
    given = {"benchmarks": [], "samples": str(rows)}
    assert read(tmp_path, base=given, **of("pass@2", "said")) == 0
    assert read(tmp_path, base=given, **of("pass@4", "said")) == 2
    assert "columns: a: Base: no figure 'pass@4' where a problem has 2 samples" in capsys.readouterr().err
