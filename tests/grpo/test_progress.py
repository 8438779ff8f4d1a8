import math
import os
import subprocess
import sys

import pytest

from grpo.monitor.progress import LOSS_NOTE, NO_GRADIENT, Advisor, Progress

ROLLOUT = {
    "reward": 0.412,
    "solved_rate": 0.25,
    "groups/no_signal": 0.5,
    "groups/with_signal": 0.5,
    "completions/mean_length": 18.25,
    "completions/clipped_ratio": 0.125,
    "tokens_per_second": 12_345.0,
    "seconds/sampling": 3.0,
    "seconds/scoring": 0.5,
}
UPDATE = {
    "clip_ratio/region": 0.01,
    "kl": 0.0012,
    "entropy": 1.5,
    "grad_norm": 0.8,
    "learning_rate": 3e-6,
    "loss": 0.0,
    "seconds/update": 1.5,
}


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_line_says_everything_a_watcher_needs(capsys):
    progress = Progress(40)
    progress.update(1, ROLLOUT | UPDATE)
    progress.close()
    note, line = lines_of(capsys)
    assert note == LOSS_NOTE
    assert line == (
        "     1/40  reward 0.412  solved 25.0%  no signal 50.0%  length 18.2  cut off 12.5%  clip 1.0%  kl 0.0012  "
        "entropy 1.500  grad norm 0.800  lr 3.00e-06  tok/s 12.3k  5.0s (sampling 60%, scoring 10%, update 30%)"
    )


def test_several_rewards_stand_behind_their_sum_and_one_does_not(capsys):
    progress = Progress(2)
    progress.update(1, ROLLOUT | UPDATE | {"rewards/gym/mean": 0.25})
    progress.update(2, ROLLOUT | UPDATE | {"rewards/gym/mean": 0.25, "rewards/format/mean": 0.9, "rewards/gym/std": 1})
    _, one, two = lines_of(capsys)
    assert "reward 0.412  solved" in one and "reward 0.412 (gym 0.25, format 0.9)  solved" in two


def test_what_was_not_measured_leaves_the_line(capsys):
    progress = Progress(2)
    progress.update(1, ROLLOUT | UPDATE)
    progress.update(2, UPDATE | {"grad_norm": math.nan, "kl": math.inf})
    line = lines_of(capsys)[-1]
    assert "reward 0.412" in line and "grad norm" not in line and "kl" not in line and "nan" not in line


def test_an_update_without_a_signal_does_not_show_the_figures_of_the_one_before(capsys):
    progress = Progress(2)
    progress.update(1, ROLLOUT | UPDATE)
    progress.update(2, {"grad_norm": 0.0, "learning_rate": 3e-6, "loss": 0.0, "seconds/update": 0.1})
    line = lines_of(capsys)[-1]
    assert "reward 0.412" in line and "grad norm 0.000" in line
    assert not any(name in line for name in ("entropy", "clip", "kl"))


def test_the_note_on_loss_is_printed_once(capsys):
    progress = Progress(3)
    for step in (1, 2, 3):
        progress.update(step, ROLLOUT | UPDATE)
    assert lines_of(capsys).count(LOSS_NOTE) == 1


def test_rollout_values_stay_on_display_and_seconds_add_up_between_lines(capsys):
    progress = Progress(8, logging_steps=4)
    for step in range(1, 9):
        progress.update(step, (ROLLOUT if step % 4 == 1 else {}) | UPDATE)
    _, *lines = lines_of(capsys)
    assert [line.split()[0] for line in lines] == ["4/8", "8/8"]
    for line in lines:
        assert "reward 0.412" in line
        assert "9.5s (sampling 32%, scoring 5%, update 63%)" in line  # 3 + 0.5 + 4 x 1.5


def test_the_last_update_gets_a_line_whatever_the_rhythm(capsys):
    progress = Progress(5, done_updates=3, logging_steps=10)
    progress.update(4, ROLLOUT | UPDATE)
    progress.update(5, UPDATE)
    assert [line.split()[0] for line in lines_of(capsys)[1:]] == ["5/5"]


def test_an_evaluation_has_a_line_of_its_own(capsys):
    progress = Progress(4, logging_steps=2)
    progress.evaluating(0, 100, 16)
    progress.update(0, {"eval/pass@1": 0.25, "eval/problems": 100.0, "seconds/evaluation": 3.0})
    for step in (1, 2):
        progress.update(step, ROLLOUT | UPDATE)
    progress.update(2, {"eval/pass@1": 0.5, "seconds/evaluation": 2.25})
    start, before, note, line, after = lines_of(capsys)
    assert start == "     0/4  held-out: sampling 100 problems x 16 ..."
    assert before == "     0/4  held-out  pass@1 0.25  problems 100  3.0s"
    assert note == LOSS_NOTE and line.startswith("     2/4  reward 0.412")
    assert after == "     2/4  held-out  pass@1 0.5  2.2s"


def test_other_processes_are_silent(capsys):
    progress = Progress(2, disable=True)
    progress.update(1, ROLLOUT | {"completions/clipped_ratio": 1.0, "grad_norm": 0.0})
    progress.write("hello")
    progress.close()
    assert capsys.readouterr() == ("", "")


def test_the_bar_shows_the_last_values_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    progress = Progress(40, done_updates=10)
    progress.update(11, ROLLOUT | UPDATE)
    progress.close()
    bar = capsys.readouterr().err
    assert "11/40" in bar
    assert "reward 0.412, solved 25.0%, length 18.2, kl 0.0012, entropy 1.500, lr 3.00e-06, tok/s 12.3k" in bar


def test_a_line_is_in_the_log_file_before_the_next_one(tmp_path):
    code = "import os; from grpo.monitor.progress import Progress; Progress(2).write('a line'); os._exit(0)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, env=environment, check=True)
    assert (tmp_path / "log").read_text() == "a line\n"


@pytest.mark.parametrize(
    ("sick", "words"),
    [
        ({"completions/clipped_ratio": 1.0}, "max_completion_length"),
        ({"groups/no_signal": 1.0}, "nothing to learn"),
        ({"verdicts/accuracy/no_answer": 60.0, "verdicts/accuracy/unparsed": 4.0}, "'accuracy' found no readable"),
        ({"verdicts/a/no_answer": 6.0, "verdicts/a/skipped": 4.0}, "'a' found no readable"),
    ],
)
def test_a_sick_set_up_is_named_once(sick, words):
    advisor = Advisor()
    (first,) = advisor.after_update(ROLLOUT | UPDATE | sick)
    assert words in first and first.startswith("WARNING")
    assert advisor.after_update(ROLLOUT | UPDATE | sick) == []


@pytest.mark.parametrize(
    "healthy",
    [
        {"completions/clipped_ratio": 0.99},
        {"verdicts/accuracy/no_answer": 63.0, "verdicts/accuracy/wrong": 1.0},
        {"verdicts/accuracy/skipped": 64.0},
        {"verdicts/accuracy/no_answer": 0.0, "verdicts/accuracy/correct": 0.0},
    ],
)
def test_a_healthy_set_up_gets_no_advice(healthy):
    assert Advisor().after_update(ROLLOUT | UPDATE | healthy) == []


def test_a_random_policy_gets_no_advice_on_its_texts_but_the_alarm():
    sick = {"completions/clipped_ratio": 1.0, "verdicts/accuracy/no_answer": 64.0}
    advisor = Advisor(random_policy=True)
    assert advisor.after_update(ROLLOUT | UPDATE | sick | {"grad_norm": 0.0}) == []
    assert advisor.after_rollout() == [NO_GRADIENT]


def test_set_up_advice_is_for_the_first_rollouts_only():
    advisor = Advisor()
    for _ in range(2):
        advisor.after_update(ROLLOUT | UPDATE)
    assert advisor.after_update(ROLLOUT | UPDATE | {"completions/clipped_ratio": 1.0}) == []


def alarms(*updates):
    advisor = Advisor()
    return [text for metrics in updates for text in advisor.after_update(metrics)] + advisor.after_rollout()


def test_zero_gradient_beside_signal_raises_the_alarm_once():
    still = UPDATE | {"grad_norm": 0.0}
    assert alarms(ROLLOUT | still, still, ROLLOUT | still) == [NO_GRADIENT]


def test_one_moving_minibatch_or_no_signal_or_a_skipped_update_raises_none():
    still = UPDATE | {"grad_norm": 0.0}
    assert alarms(ROLLOUT | still, UPDATE, still) == []
    assert NO_GRADIENT not in alarms(ROLLOUT | still | {"groups/no_signal": 0.5, "groups/with_signal": 0.0})
    assert alarms(ROLLOUT | UPDATE | {"grad_norm": math.nan}) == []
