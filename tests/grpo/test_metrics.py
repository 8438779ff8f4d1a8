import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.files import replacing, write_json_atomic, write_text_atomic
from grpo.monitor.metrics import METRICS, MetricsLog, describe, read_metrics
from rewards.reward import FUNNEL, Verdict

LOGGED = [
    "reward", "reward_std", "rewards/accuracy/mean", "rewards/my.module:func/std", "solved_rate",
    "groups/no_signal", "groups/with_signal", "groups/dropped", "completions/mean_length", "completions/min_length",
    "completions/max_length", "completions/clipped_ratio", "completions/missing", "loss", "clip_ratio/low",
    "clip_ratio/high", "clip_ratio/region", "kl", "entropy", "grad_norm", "learning_rate", "tokens_per_second",
    "step_time", "seconds/sampling", "seconds/scoring", "seconds/update", "sampler_gap/mean", "sampler_gap/max",
    "importance_weight/mean", "importance_weight/effective", "importance_weight/limited", "off_policy/masked",
    "rows/skipped", "num_tokens", "rollout", "epoch", "skipped_updates", "eval/pass@1", "eval/pass@8",
    "eval/maj@16", "eval/format_rate", "eval/mean_length", "eval/clipped_ratio", "eval/problems", "eval/samples",
    "groups/sampled", "groups/kept", "sampling_rounds", "tokens/sampled", "tokens/trained", "schedule/changes",
    "problems/retired", "discarded/all_right", "nll", "divergence", "mean_token_accuracy", "eval/nll",
    "eval/mean_token_accuracy",
    *(f"verdicts/accuracy/{verdict}" for verdict in Verdict),
    *(f"funnel/accuracy/{stage}" for stage in ("terminated", *FUNNEL)),
]  # fmt: skip


@pytest.mark.parametrize("metric", LOGGED)
def test_every_metric_of_a_run_is_documented(metric):
    assert describe(metric)


@pytest.mark.parametrize("metric", ["rewards", "rewards/accuracy", "eval/pass@", "xreward", "eval/pass@k", "kl2"])
def test_a_name_outside_the_glossary_has_no_documentation(metric):
    assert describe(metric) is None


def test_no_glossary_entry_is_unused():
    assert {describe(metric) for metric in LOGGED} == set(METRICS.values())


def test_lines_come_back_with_step_and_time(tmp_path):
    log = MetricsLog(tmp_path / "new" / "run")
    log.write(1, {"reward": 0.25, "groups/dropped": 3})
    log.write(2, {"reward": 0.5})
    first, second = read_metrics(tmp_path / "new" / "run")
    assert (first["step"], first["reward"], first["groups/dropped"]) == (1, 0.25, 3)
    assert second["time"] >= first["time"] > 1e9


def test_a_run_that_has_not_begun_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name not in ("step", "time")), st.floats()))
def test_any_float_makes_strict_json(tmp_path_factory, metrics):
    run_dir = tmp_path_factory.mktemp("run")
    MetricsLog(run_dir).write(7, metrics)

    def refuse(constant):
        raise AssertionError(constant)

    (text,) = (run_dir / "metrics.jsonl").read_text().splitlines()
    line = json.loads(text, parse_constant=refuse)
    assert all(line[name] == (value if math.isfinite(value) else None) for name, value in metrics.items())


def test_rewind_drops_later_lines_and_the_run_goes_on(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write(step, {"reward": step / 10})
    log.rewind(3, evaluated=3)
    log.write(4, {"reward": -1.0})
    assert [(line["step"], line["reward"]) for line in read_metrics(tmp_path)] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, -1),
    ]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_last_line_cut_by_a_kill_is_left_out_everywhere(tmp_path, cut):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"reward": 0.5, "entropy": 0.1 * step})
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    kept = [line["step"] for line in read_metrics(tmp_path)]
    assert kept == ([1, 2, 3] if cut == 1 else [1, 2])  # 1: only the newline is missing, the line is whole
    log.rewind(3, evaluated=3)
    log.write(9, {})
    assert [line["step"] for line in read_metrics(tmp_path)] == [*kept, 9]


def test_rewind_without_a_file_starts_an_empty_log(tmp_path):
    MetricsLog(tmp_path).rewind(0, evaluated=0)
    assert read_metrics(tmp_path) == []


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "summary.json"
    write_json_atomic(path, {"seed": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, {"seed": math.nan})
    with pytest.raises(OSError, match="disk full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert json.loads(path.read_text()) == {"seed": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@given(st.text(alphabet=st.characters(codec=None)))
def test_any_text_can_be_written(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    write_text_atomic(path, text)
    assert path.read_bytes() == text.encode("utf-8", errors="backslashreplace")
