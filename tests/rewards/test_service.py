"""The service against things that really hang, crash, eat memory and lie."""

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gmpy2  # sympy then computes with it: in C, deaf to signals
import psutil
import pytest

from rewards import Verdict
from rewards.service import Service, shared
from tests.rewards import killers

DEADLINE = 1.0
ROOT = Path(__file__).resolve().parents[2]


def target(name):
    return f"tests.rewards.killers:{name}"


@pytest.fixture(scope="module")
def service():
    service = Service(workers=2)
    service.map(target("double"), [{"x": 1}] * 2, deadline=5)
    yield service
    service.close()


def values(outcomes):
    assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
    return [outcome.value for outcome in outcomes]


def broker(service):
    return psutil.Process(service._process.pid)


def gone(pids, seconds=5.0):
    """Whether one of them ends within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(not psutil.pid_exists(p) or psutil.Process(p).status() == psutil.STATUS_ZOMBIE for p in pids):
            return True
        time.sleep(0.02)
    return False


def test_results_come_in_order_whatever_their_time(service):
    calls = [{"seconds": 0.1 if index % 7 == 0 else 0.0} for index in range(40)]
    seconds = [outcome.seconds for outcome in service.map(target("pid_after"), calls, deadline=5)]
    assert [index for index, spent in enumerate(seconds) if spent > 0.05] == list(range(0, 40, 7))
    assert values(service.map(target("double"), [{"x": x} for x in range(3000)], deadline=5)) == list(range(0, 6000, 2))


def test_no_calls_give_no_outcomes_and_start_nothing():
    service = Service(workers=1)
    assert service.map(target("double"), [], deadline=1) == [] and service._process is None


def test_sympy_computes_with_gmpy2_here_which_no_signal_interrupts(service):
    assert gmpy2.version()
    assert values(service.map("tests.rewards.killers:ground_types", [{}], deadline=20)) == ["gmpy"]


@pytest.mark.normal
@pytest.mark.parametrize(
    ("killer", "failure", "deadline"),
    [
        *((function.__name__, "timeout", 0.5) for function in killers.TIMEOUTS),
        *((function.__name__, "crash", 20.0) for function in killers.CRASHES),
        *((function.__name__, "memory", 20.0) for function in killers.MEMORY),
    ],
)
def test_every_killer_gets_its_outcome_in_time_and_is_dead_after_it(service, killer, failure, deadline):
    values(service.map(target("judge"), [{"x": 1}] * 2, deadline=20))
    before = {worker.pid for worker in broker(service).children()}
    began = time.monotonic()
    (outcome,) = service.map(target("judge"), [{"x": 1, "killer": killer}], deadline=deadline)
    assert time.monotonic() - began < deadline + 0.5
    assert outcome.failure == failure and outcome.reason and outcome.value is None
    assert gone(before)
    assert values(service.map(target("judge"), [{"x": 4}], deadline=20)) == [8]


@pytest.mark.normal
def test_the_deadline_holds_without_gmpy2_too():
    code = """
        began = time.monotonic()
        calls = [{"x": 1, "killer": name} for name in ("sympy_tower", "sympy_factorial", "sympy_binomial")]
        outcomes = service.map("tests.rewards.killers:judge", calls, deadline=1.0)
        print(service.map("tests.rewards.killers:ground_types", [{}], deadline=20)[0].value,
              *[outcome.failure for outcome in outcomes], time.monotonic() - began < 60)
    """
    shown, _ = run_program(code, SYMPY_GROUND_TYPES="python", MPMATH_NOGMPY="1").communicate(timeout=120)
    assert shown.split() == ["python", "timeout", "timeout", "timeout", "True"]


@pytest.mark.normal
def test_a_batch_with_killers_ends_in_time_and_costs_the_other_rows_nothing(service):
    killing = [
        "sympy_factorial",
        "sleeps",
        "exits_quietly",
        "eats_memory",
        "deaf",
        "segfaults",
        "python_power",
        "leaves",
    ]
    calls = [{"x": x} for x in range(64)]
    for place, killer in zip(range(3, 64, 8), killing, strict=True):
        calls[place]["killer"] = killer
    values(service.map(target("judge"), [{"x": 1}] * 2, deadline=20))
    began = time.monotonic()
    outcomes = service.map(target("judge"), calls, deadline=DEADLINE)
    assert time.monotonic() - began < 8 * DEADLINE / service.workers + 5
    failed = {index for index, outcome in enumerate(outcomes) if outcome.failure}
    assert failed == set(range(3, 64, 8))
    assert all(outcome.value == 2 * index for index, outcome in enumerate(outcomes) if index not in failed)


def test_an_exception_is_an_error_with_its_text_and_its_trace(service):
    first, second = service.map(target("raises"), [{"x": 3}, {"x": 4}], deadline=5)
    assert (first.failure, first.reason) == ("error", "ValueError: cannot judge 3")
    assert "in raises" in first.trace and second.reason == "ValueError: cannot judge 4"
    assert service.map(target("leaves"), [{"x": 1}], deadline=5)[0].reason == "SystemExit: 0"
    assert "TypeError" in service.map(target("double"), [{"y": 1}], deadline=5)[0].reason


def test_a_target_that_cannot_be_loaded_is_an_error_that_says_so(service):
    assert "no_such" in service.map("tests.rewards.killers:no_such", [{}], deadline=5)[0].reason
    assert "no_module" in service.map("no_module:f", [{}], deadline=5)[0].reason
    (outcome,) = service.map(target("NeverLoads"), [{}], deadline=5, make={})
    assert outcome.failure == "infra" and "while loading" in outcome.reason  # the row had no part in it


def test_a_call_may_be_made_twice_when_its_worker_dies_early(service, tmp_path):
    assert values(service.map(target("crashes_once"), [{"flag": str(tmp_path / "flag")}], deadline=10)) == ["survived"]


def test_a_result_can_carry_no_code_into_the_trainer(service, tmp_path):
    (outcome,) = service.map(target("forges_a_result"), [{"path": str(tmp_path / "canary")}], deadline=5)
    assert outcome.failure == "error" and "no plain data" in outcome.reason
    assert not (tmp_path / "canary").exists()
    assert service.map(target("no_plain_data"), [{}], deadline=5)[0].failure == "error"


def test_plain_data_and_this_packages_own_types_come_back_as_they_were(service):
    given = [(1, "a", None, True, 1.5, b"b", 2j), {"k": [Verdict.WRONG, {3}, frozenset()]}]
    calls = [{"x": value} for value in given]
    assert values(service.map("tests.rewards.killers:same", calls, deadline=5)) == given


def test_a_verdict_is_pickled_by_value_whatever_the_version_of_python():
    assert Verdict.WRONG.__reduce_ex__(pickle.HIGHEST_PROTOCOL) == (Verdict, ("wrong",))
    assert pickle.loads(pickle.dumps(Verdict.WRONG)) is Verdict.WRONG


def test_a_call_that_is_too_large_is_not_made(monkeypatch, service):
    monkeypatch.setattr("rewards.service.CALL_LIMIT", 10_000)
    first, second = service.map(target("double"), [{"x": "a" * 10_001}, {"x": 1}], deadline=5)
    assert (first.failure, second.value) == ("memory", 2) and "10000" in first.reason


def test_loading_is_not_counted_against_the_deadline():
    service = Service(workers=1)
    assert values(service.map(target("SlowToLoad"), [{}], deadline=0.3, make={})) == ["loaded"]
    service.close()


def test_a_made_object_lives_as_long_as_its_worker_and_workers_are_recycled():
    lasting, recycled = Service(workers=1, recycle=None), Service(workers=1, recycle=3)
    for service, counts in ((lasting, [11, 12, 13, 14, 15]), (recycled, [11, 12, 13, 11, 12])):
        assert values(service.map(target("Counter"), [{}] * 5, deadline=5, make={"start": 10})) == counts
        service.close()


def test_many_threads_share_it_and_a_long_map_starves_nobody(service):
    def ask(number):
        return values(service.map(target("double"), [{"x": number * 100 + x} for x in range(50)], deadline=10))

    slow = threading.Thread(
        target=service.map, args=(target("pid_after"), [{"seconds": 0.05}] * 60), kwargs={"deadline": 5}
    )
    slow.start()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [[2 * (n * 100 + x) for x in range(50)] for n in range(8)]
    slow.join()


def test_it_works_inside_a_running_event_loop(service):
    async def inside():
        return values(service.map(target("double"), [{"x": 4}], deadline=5))

    assert asyncio.run(inside()) == [8]


def test_signals_to_every_process_but_sigkill_change_nothing(service):
    """A cluster sends SIGTERM to all processes of a job; the trainer alone decides what that means."""

    def shout():
        for process in [broker(service), *broker(service).children()]:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                process.send_signal(number)

    timer = threading.Timer(0.2, shout)
    timer.start()
    pids = values(service.map(target("pid_after"), [{"seconds": 0.2}] * 8, deadline=5))
    assert len(set(pids)) == 2
    timer.join()


@pytest.mark.parametrize("who", ["broker", "workers"])
def test_a_sigkill_from_outside_loses_no_row(who):
    service = Service(workers=2)
    values(service.map(target("double"), [{"x": 1}], deadline=5))

    def strike():
        for process in [broker(service)] if who == "broker" else broker(service).children():
            process.kill()

    timer = threading.Timer(0.3, strike)
    timer.start()
    assert len(values(service.map(target("pid_after"), [{"seconds": 0.1}] * 12, deadline=10))) == 12
    timer.join()
    service.close()


def test_what_a_killed_call_started_is_killed_with_it(service, tmp_path):
    (outcome,) = service.map(target("has_children_and_hangs"), [{"file": str(tmp_path / "pid")}], deadline=DEADLINE)
    assert outcome.failure == "timeout" and gone([int((tmp_path / "pid").read_text())])


def test_an_interrupted_map_frees_its_workers(service):
    previous = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        service.map(target("sleeps"), [{}] * 4, deadline=60)
    signal.signal(signal.SIGINT, previous)
    began = time.monotonic()
    assert values(service.map(target("double"), [{"x": 1}] * 2, deadline=5)) == [2, 2]
    assert time.monotonic() - began < 30


PROGRAM = """
import os, sys, time
from rewards.service import Service
service = Service(workers=2)
outcomes = service.map("tests.rewards.killers:leaves_a_child_behind", [{}], deadline=20)
pids = service.map("tests.rewards.killers:pid_after", [{"seconds": 0.2}] * 2, deadline=20)
"""


def run_program(code, **environment):
    program = [sys.executable, "-c", PROGRAM + textwrap.dedent(code)]
    return subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("end", ["", "os._exit(3)", "os.kill(os.getpid(), 9)", "raise SystemExit(2)"])
def test_the_end_of_the_trainer_is_the_end_of_all_its_processes(end):
    started = "print(service._process.pid, outcomes[0].value, *[o.value for o in pids], flush=True)\n"
    shown, _ = run_program(started + end).communicate(timeout=60)
    assert len(shown.split()) == 4 and all(gone([int(pid)]) for pid in shown.split())


def test_a_trainer_that_ends_while_its_workers_are_stuck_leaves_none():
    program = run_program("print(service._process.pid, *[o.value for o in pids], flush=True); "
                          "service.map('tests.rewards.killers:deaf', [{'x': 1}] * 2, deadline=600)")  # fmt: skip
    pids = program.stdout.readline().split()
    time.sleep(0.3)
    program.kill()
    program.communicate()
    assert len(pids) == 3 and all(gone([int(pid)]) for pid in pids)


def test_a_fork_of_the_trainer_gets_a_service_of_its_own_and_does_not_keep_the_old_one_alive():
    program = run_program("""
        first = service._process.pid
        child = os.fork()
        if child == 0:
            value = service.map("tests.rewards.killers:double", [{"x": 4}], deadline=20)[0].value
            print(value, first != service._process.pid, flush=True)
            time.sleep(60)
            os._exit(0)
        print(first, child, service.map("tests.rewards.killers:double", [{"x": 5}], deadline=20)[0].value, flush=True)
        os._exit(0)
    """)
    lines = sorted([program.stdout.readline().strip(), program.stdout.readline().strip()], key=len)
    program.wait(60)
    assert lines[0] == "8 True"
    first, child, value = map(int, lines[1].split())
    assert value == 10 and gone([first], 3.0)
    os.kill(child, signal.SIGKILL)
    program.communicate(timeout=60)


def test_workers_see_no_secrets_unless_asked_to():
    code = """
        secret = Service(workers=1, secrets=True)
        for each in (service, secret):
            environ, initial = each.map("tests.rewards.killers:environment", [{}], deadline=20)[0].value
            print("HUSH" in str(environ), b"HUSH" in initial, environ.get("MY_SETTING"))
    """
    keys = {"HF_TOKEN": "HUSH", "OPENAI_API_KEY": "HUSH", "DB_PASSWORD": "HUSH", "MY_SETTING": "seen"}
    shown, _ = run_program(code, **keys).communicate(timeout=60)
    assert shown.splitlines() == ["False False seen", "True False seen"]


def test_starting_it_imports_neither_torch_nor_the_main_module(service):
    loaded = values(service.map(target("modules"), [{}], deadline=5))[0]
    assert not {"torch", "numpy", "pytest", "transformers"} & set(loaded)


def test_the_shared_service_is_one():
    assert shared() is shared() and shared().workers >= 1


@pytest.mark.slow
def test_ten_thousand_bad_checks_leave_the_trainer_as_large_as_it_was(service):
    def size():
        return psutil.Process().memory_info().rss

    bad = [{"x": "?" * 200, "killer": "no_such"} for _ in range(490)] + [{"x": 1, "killer": "exits_quietly"}] * 9
    bad.append({"x": 1, "killer": "sleeps"})
    service.map(target("judge"), bad, deadline=0.2)
    before, descriptors, failed = size(), psutil.Process().num_fds(), 0
    for _ in range(20):
        failed += sum(outcome.failure is not None for outcome in service.map(target("judge"), bad, deadline=0.2))
    assert failed == 10_000
    assert size() - before < 50 << 20 and psutil.Process().num_fds() <= descriptors
    assert len(broker(service).children()) <= 2  # and no zombies
