import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import torch

from data.problem import Problem
from grpo.cli import main
from grpo.errors import ConfigError
from grpo.monitor.charts import Chart, moving_average, points, svg
from grpo.monitor.completions import write_completions
from grpo.monitor.metrics import MetricsLog
from grpo.monitor.report import before_after_table, evaluation_samples, report_from_run, write_report
from grpo.types import Rollout, RolloutGroup, ScoredGroup

HOSTILE = "<script>alert(1)</script> </pre><img src=x onerror=alert(2)> \x1b[31m \x00 \ud800 {braces} &amp;"


def sample(text, correct):
    return {"question": "3 + 4 < 8?", "answer": "7", "completion": text, "correct": correct, "length": 3}


SAMPLES = {"before": [sample("before text", False)] * 3, "after": [sample("after text", True)] * 3}
SUMMARY = {
    "before": {"pass@1": 0.25, "mean_length": 10.25, "problems": 256},
    "after": {"pass@1": 0.9375, "mean_length": 28.5, "problems": 256},
    "seed": 0,
    "samples": SAMPLES,
    "notes": ["a note"],
}


def rollout(step):
    return {
        "reward": 0.01 * step, "solved_rate": 0.02 * step, "completions/mean_length": 10.0 + step, "entropy": 1 / step,
        "kl": 0.001 * step, "grad_norm": 0.5, "groups/no_signal": 0.5, "rewards/accuracy/mean": 0.1 * step,
        "rewards/format/mean": 0.9, "seconds/sampling": 3.0, "seconds/scoring": 1.0, "seconds/update": 4.0,
        "num_tokens": 1000.0,
    }  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    log = MetricsLog(tmp_path / "demo")
    log.write(0, {"eval/pass@1": 0.25, "eval/pass@8": 0.8})
    for step in range(1, 11):
        log.write(step, rollout(step))
    log.write(10, {"eval/pass@1": 0.75, "eval/pass@8": 0.95})
    (tmp_path / "demo" / "config.yaml").write_text("beta: 0.001\nreward_funcs: [accuracy]\nmodel: {name: tiny}\n")
    return tmp_path / "demo"


class Page(HTMLParser):
    """Tags, attributes and text of a page; every element but the void ones must be closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def test_the_page_has_every_part(run_dir):
    (run_dir / "summary.json").write_text(json.dumps(SUMMARY))
    page = Page(report_from_run(run_dir))
    for title in ("Reward", "Accuracy", "Completion length", "Entropy", "KL to the reference", "Gradient norm"):
        assert f"\n{title}\n" in page.text
    assert page.tags.count("svg") == 8
    assert "10 updates · 10,000 tokens" in page.text and "a note" in page.text and "Run demo" in page.text
    assert "sampling 38%, 30.0 s" in page.text and "together 1 min 20 s" in page.text
    assert re.search(r"pass@1\s+0.250\s+0.938\s+mean_length\s+10.2\s+28.5\s+problems\s+256\s+256", page.text)
    assert page.text.count("before text") == page.text.count("after text") == 3
    assert re.search(r"model.name\s+tiny", page.text) and re.search(r"beta\s+0.001", page.text)


def test_the_page_needs_nothing_from_elsewhere_and_runs_no_script(run_dir):
    page = Page(write_report(run_dir, title="t", table=[], samples=SAMPLES))
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on") and name != "src"
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
    css = page.text[: page.text.index("}\n")]
    assert "url(" not in css and "@import" not in css


def test_model_text_is_escaped_everywhere(run_dir):
    hostile = [sample(HOSTILE, None) | {"question": HOSTILE, "answer": HOSTILE}]
    (run_dir / "config.yaml").write_text(json.dumps({"system_prompt": HOSTILE}))
    path = write_report(
        run_dir,
        title=HOSTILE,
        table=[[HOSTILE, "before"], [HOSTILE, None]],
        samples={"before": hostile, "after": hostile},
        notes=[HOSTILE],
    )
    page = Page(path)
    assert "script" not in page.tags and "img" not in page.tags
    shown = "<script>alert(1)</script> </pre><img src=x onerror=alert(2)> ␛[31m ␀ \\ud800 {braces} &amp;"
    assert page.text.count(shown) == 10  # 2 titles, note, 2 cells, question, answer, 2 completions, config


def test_a_run_without_summary_is_described_by_its_evaluations(run_dir):
    page = Page(report_from_run(run_dir))
    assert re.search(r"pass@1\s+0.250\s+0.750\s+pass@8\s+0.800\s+0.950", page.text)
    assert "The same problem" not in page.text


def evaluate(run_dir, step, problem_ids, text, correct):
    groups = []
    for problem_id in problem_ids:
        problem = Problem(id=problem_id, question=f"{problem_id}?", answer="7", prompt="Q")
        rollouts = tuple(
            Rollout(
                prompt_ids=(1,), completion_ids=(5,), sampler_logprobs=(-0.1,), text=f"{text} {g}", stop_reason="eos"
            )
            for g in range(4)
        )
        group = RolloutGroup(problem=problem, rollouts=rollouts)
        groups.append(ScoredGroup(group=group, rewards_G=[0.0] * 4, correct_G=[correct] * 4, parts={}, verdicts={}))
    write_completions(run_dir / "evaluation", 0, step, groups, torch.zeros(len(groups), 4))


def test_samples_come_from_the_first_and_the_last_evaluation(run_dir):
    assert evaluation_samples(run_dir) == {}
    evaluate(run_dir, 0, ["a", "b", "c"], "early", False)
    assert evaluation_samples(run_dir) == {}
    evaluate(run_dir, 5, ["a", "b", "c"], "middle", False)
    evaluate(run_dir, 10, ["d", "c", "b"], "late", True)
    samples = evaluation_samples(run_dir)
    expected = {"question": "b?", "answer": "7", "length": 1}
    assert samples["before"] == [expected | {"completion": f"early {g}", "correct": False} for g in range(3)]
    assert samples["after"] == [expected | {"completion": f"late {g}", "correct": True} for g in range(3)]
    page = Page(report_from_run(run_dir))
    assert (
        page.text.count("b?") == 1 and "early 2" in page.text and "late 2" in page.text and "early 3" not in page.text
    )


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    MetricsLog(tmp_path).write(1, {"reward": 0.5})
    page = Page(report_from_run(tmp_path))
    assert page.tags.count("svg") == 1 and "1 updates" in page.text and "Before and after" not in page.text


def test_the_command_prints_the_path_or_says_what_is_missing(run_dir, tmp_path, capsys):
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    assert main(["report", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        report_from_run(tmp_path)


def test_the_same_run_gives_the_same_page(run_dir):
    first = report_from_run(run_dir).read_bytes()
    assert report_from_run(run_dir).read_bytes() == first


def test_table_rows_cover_both_sides():
    table = before_after_table({"before": {"a": 1.0}, "after": {"a": 2.0, "b": 3.0}})
    assert table == [["held-out", "before", "after"], ["a", 1.0, 2.0], ["b", None, 3.0]]
    assert before_after_table({}) == []


def test_points_take_the_last_line_of_a_step_and_skip_null():
    lines = [{"step": 1, "kl": 0.1}, {"step": 2, "kl": None}, {"step": 3}, {"step": 4, "kl": 0.4}, {"step": 1, "kl": 9}]
    assert points(lines, "kl") == ([1, 4], [9, 0.4])


def test_moving_average_by_hand():
    assert moving_average([1, 2, 3, 4, 10], 3) == [1.5, 2.0, 3.0, 17 / 3, 7.0]


def test_a_chart_draws_one_path_per_line_with_unique_ids():
    lines = [{"step": step, "a": 0.1 * step, "b": 0.2} for step in range(1, 30)]
    one = ElementTree.fromstring(svg(Chart(title="One & only", lines={"a": "first", "b": "<second>"}), lines))
    two = ElementTree.fromstring(svg(Chart(title="Two", lines={"a": "first", "c": "never measured"}), lines))
    texts = {element.text for element in one.iter() if element.text}
    assert {"first", "<second>"} <= texts and one.get("aria-label") == "One & only"
    ids = [{element.get("id") for element in root.iter()} - {None} for root in (one, two)]
    assert ids[0].isdisjoint(ids[1])
    assert svg(Chart(title="None", lines={"c": "never measured"}), lines) == ""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
@pytest.mark.normal
def test_a_browser_draws_it(run_dir, tmp_path):
    path = write_report(run_dir, title="t", table=[["a", "b"], ["c", 1.0]], samples=SAMPLES)
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}", "--window-size=400,3000"]
    subprocess.run(["chromium", *flags, path.as_uri()], check=True, capture_output=True, timeout=60)
    from matplotlib.image import imread

    blue = (abs(imread(shot)[..., :3] - [0x3B / 255, 0x82 / 255, 0xF6 / 255]).max(axis=-1) < 0.02).sum()
    assert blue > 2000  # curves and the bar of the sampling phase
