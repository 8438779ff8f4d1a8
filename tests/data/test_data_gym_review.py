"""The review behind REVIEWED_TASKS, repeated on the installed version of reasoning-gym."""

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from data.gym_tasks import (
    OWN_SCORER_GROUPS,
    OWN_SCORER_TASKS,
    REFUSED_GROUPS,
    REFUSED_TASKS,
    REVIEWED_TASKS,
    SEPARATE_TASKS,
)
from rewards.gym_scorers import FORMS
from tests.house_rules.sources import parsed

FORBIDDEN_WORDS = """
eval exec compile __import__ import_module importlib open popen system subprocess Popen run_path spawn
sympify parse_expr parse_latex lambdify pickle marshal shelve yaml ctypes socket urlopen requests getattr setattr
globals locals vars print
"""
FORBIDDEN = {"import", *FORBIDDEN_WORDS.split()}


def names_in(source: str) -> set[str]:
    nodes = list(ast.walk(parsed(textwrap.dedent(source))))
    imported = {"import" for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return imported | names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def reachable_names(task: str) -> set[str]:
    """Every name used by score_answer and, transitively, by the methods, functions and classes of the package it names.

    Over-approximates: a name counts as a call of every method of the dataset class and every object of the module
    that bears it. Classes count whole.
    """
    cls = DATASETS[task][0]
    todo, seen, names = [cls.score_answer], set(), set()
    while todo:
        item = todo.pop()
        if item in seen or not getattr(item, "__module__", "").startswith("reasoning_gym"):
            continue
        seen.add(item)
        used = names_in(inspect.getsource(item))
        names |= used
        module = vars(sys.modules[item.__module__])
        for name in used:
            found = [getattr(cls, name, None), module.get(name), vars(reasoning_gym.utils).get(name)]
            todo += [inspect.unwrap(f) for f in found if inspect.isfunction(f) or inspect.isclass(f)]
    return names


ACCEPTED = sorted(REVIEWED_TASKS | OWN_SCORER_TASKS)


def test_every_task_is_reviewed_judged_here_or_refused():
    assert sum(map(len, REFUSED_GROUPS.values())) == len(REFUSED_TASKS)
    assert sum(map(len, OWN_SCORER_GROUPS.values())) == len(OWN_SCORER_TASKS)
    assert sorted([*REVIEWED_TASKS, *OWN_SCORER_TASKS, *REFUSED_TASKS]) == sorted(DATASETS)
    assert "chain_sum" in REVIEWED_TASKS and set(ACCEPTED) >= SEPARATE_TASKS
    assert (len(DATASETS), len(ACCEPTED)) == (106, 101)


@pytest.mark.parametrize("task", sorted(REVIEWED_TASKS | FORMS.keys()))
def test_no_path_from_the_scorer_evaluates_anything(task):
    assert not reachable_names(task) & FORBIDDEN


@pytest.mark.parametrize("task", [t for reason, tasks in OWN_SCORER_GROUPS.items() if "eval" in reason for t in tasks])
def test_the_walk_would_notice_an_evaluating_scorer(task):
    assert reachable_names(task) & {"eval", "parse_expr"}


HOSTILE = [
    "",
    " ",
    "\0",
    "\ud800",
    "nan",
    "inf",
    "-inf",
    "[NaN]",
    "1e999999999",
    "-1E+999999999999999999",
    "1/1e999999999",
    "9" * 5000,
    "9" * 5000 + "/3",
    "[" * 100_000,
    '{"a":' * 10_000,
    "(" * 10_000 + "A" + ")" * 10_000,
    "U999999999 R999999999",
    "A+99999999999 B-99999999999",
    "a & b | c & " * 20 + "z",
    "9**9**9**9",
    "1," * 20_000,
    "\n" * 20_000,
    "٣٤٥",
    "Move disk 1 from Peg 9 to Peg 9",
    "__import__('os').system('touch PWNED')",
    "[__import__('os').system('touch PWNED')]",
    "exec(\"open('PWNED', 'w')\")",
    "!!python/object/apply:os.system ['touch PWNED']",
    "file:///etc/passwd",
    "/etc/passwd",
    "{{7*7}} {0.__class__} %s %n",
]

SCORE_UNDER_AUDIT = """
import decimal, json, random, signal, sys
import numpy
from data.gym import load_gym
from rewards.gym import solves

def process_state():
    return str([random.getstate(), numpy.random.get_state(), decimal.getcontext().prec])

tasks, hostile = json.load(sys.stdin)
FORBIDDEN = ("compile", "exec", "open", "import", "os.", "subprocess.", "socket.", "shutil.", "ctypes.", "urllib.")
armed, caught = False, []

def hook(event, arguments):
    if armed and event.startswith(FORBIDDEN):
        caught.append(event)

def too_slow(*_):
    raise SystemExit("TOO SLOW")  # not an Exception: no scorer swallows it

sys.addaudithook(hook)
signal.signal(signal.SIGALRM, too_slow)
found = []
for task in tasks:
    state = process_state()
    problems = load_gym(task, size=4, seed=4, heldout_share=0.0).problems
    entry = next(p.columns["gym_entry"] for p in problems if solves(p.columns["gym_entry"], p.answer))
    before = json.dumps(entry)
    for answer in [entry["answer"], *hostile, entry["answer"] + " or so", "[" + entry["answer"] + "]"]:
        caught.clear()
        signal.alarm(20)
        armed = True
        score = solves(entry, answer)
        armed = False
        signal.alarm(0)
        paid = score and answer in hostile and answer.strip() != entry["answer"].strip()
        if caught or paid or json.dumps(entry) != before:
            found.append([task, answer[:40], score, list(caught)])
    if process_state() != state:
        found.append([task, "changed the process's random state or decimal precision"])
print("RESULT" + json.dumps(found))
"""


@pytest.mark.normal
def test_hostile_answers_do_nothing_and_earn_nothing(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCORE_UNDER_AUDIT],
        input=json.dumps([ACCEPTED, HOSTILE]),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.rpartition("RESULT")[2]) == []
    assert list(tmp_path.iterdir()) == []


def test_the_audit_would_notice_an_evaluating_scorer(tmp_path):
    """The same answers in the package's scorer: they do run, so the test above can fail."""
    script = """
import reasoning_gym
task = reasoning_gym.create_dataset("spiral_matrix", size=1, seed=0)
task.score_answer("[__import__('os').system('touch PWNED')]", task[0])
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "PWNED").exists()


ITEMS_HASH = """
import hashlib, json, sys
from data.fingerprint import fingerprint
from data.gym import load_gym
tasks = json.load(sys.stdin)
loaded = {task: load_gym(task, size=5, seed=4, heldout_share=0.0).problems for task in tasks}
hashes = {task: fingerprint(problems) for task, problems in loaded.items()}
print("RESULT" + json.dumps(hashes))
"""


def items_hashes(tasks, seed):
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", ITEMS_HASH],
        input=json.dumps(tasks),
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.rpartition("RESULT")[2])


@pytest.mark.normal
def test_items_are_the_same_in_every_process():
    """Python's hash seed differs from process to process; the order of a set must not reach the problems."""
    tasks = [*sorted(set(ACCEPTED) - SEPARATE_TASKS), "ransom_note"]
    assert items_hashes(tasks, "1") == items_hashes(tasks, "2")


@pytest.mark.slow
def test_items_that_are_generated_separately_are_the_same_too():
    assert items_hashes(sorted(SEPARATE_TASKS), "1") == items_hashes(sorted(SEPARATE_TASKS), "2")
