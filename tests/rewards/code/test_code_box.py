"""What a program sees and reaches in the box, asked of programs that look; the filter, the self-test, the levels."""

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from rewards import RewardError
from rewards.code import seccomp
from rewards.code.box import DRIVER, ENVIRONMENT, LocalBox
from rewards.code.protocol import Limits
from rewards.code.reward import Code
from rewards.code.runner import Runner, Unavailable
from rewards.code.self_test import SelfTest, Trust, self_test
from tests.house_rules.sources import parsed
from tests.rewards.code.attacks import LIBC

pytestmark = pytest.mark.usefixtures("unharmed")
ROOT = Path(__file__).resolve().parents[3]
TRY = """
import os, socket, sys
def tried(act, *arguments):
    try:
        return act(*arguments)
    except (OSError, ValueError, ImportError) as error:
        return type(error).__name__ + (f" {error.errno}" if isinstance(error, OSError) else "")
"""
REFUSED_CALL = "libc.syscall(number, *arguments) == -1 and ctypes.get_errno()"


def ask(box, body, expression, **limits):
    """The value of an expression after a program has run in the box."""
    runner = Runner(box, replace(Limits(cpu_seconds=2.0), **limits))
    (result,) = runner.run(TRY + LIBC + body, [{"expression": expression, "setup": ""}])
    assert result.end == "done", result
    return result.value


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    """A canary wherever this process could leak one: environment, an open file, a file, the repository's folder."""
    path = tmp_path / "secret"
    path.write_text("canary-1234")
    path.chmod(0o644)
    monkeypatch.setenv("SECRET_TOKEN", "canary-1234")
    with path.open() as file:
        os.set_inheritable(file.fileno(), True)
        yield path


def test_x10_x13_x18_files_and_environment_of_the_host_are_not_there(sandbox, secrets):
    paths = ["/etc/passwd", "/etc/shadow", str(secrets), str(ROOT), str(ROOT / "pyproject.toml"), "/root/.ssh",
             "/home", "/sys", "/dev/kvm", "/dev/mem", "/dev/nvidia0", "/var", "/proc/1/root/etc"]  # fmt: skip
    assert ask(sandbox, "", f"[path for path in {paths} if os.path.exists(path)]") == []
    assert ask(sandbox, "", "[os.listdir(path) for path in ('/run', '/tmp', '/dev/shm')][0]") == []
    seen = ask(sandbox, "", "dict(os.environ)")
    assert set(seen) <= {*ENVIRONMENT, "PWD", "LC_CTYPE"} and "canary" not in str(seen)


def test_x11_only_its_own_processes_and_nobody_s_environment(sandbox, secrets):
    look = (
        "def environments():\n    found = ''\n"
        "    for name in filter(str.isdigit, os.listdir('/proc')):\n"
        "        found += str(tried(lambda: open(f'/proc/{name}/environ').read()))\n    return found"
    )
    assert "canary" not in ask(sandbox, look, "environments()")
    assert len(ask(sandbox, "", "[name for name in os.listdir('/proc') if name.isdigit()]")) <= 3
    assert ask(sandbox, "", "open('/proc/self/mountinfo').read().count('canary')") == 0


def test_x12_no_descriptor_but_the_standard_ones_and_the_value(sandbox, secrets):
    listed = "[os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if tried(os.fstat, int(n))]"
    seen = ask(sandbox, "", f"[tried(lambda: {listed})]")
    assert "secret" not in str(seen)
    assert ask(sandbox, "", "sorted(map(int, os.listdir('/proc/self/fd')))") in ([0, 1, 2, 3, 4], [0, 1, 2, 4, 5])


def test_x14_nothing_outside_the_box_s_own_folders_can_be_written(sandbox):
    places = ["/usr/x", "/usr/lib/x", f"{sys.base_prefix}/x", os.path.realpath(sys.executable), "/folders/numpy/x",
              "/x", "/dev/x", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/lib/x"]  # fmt: skip
    tried = ask(sandbox, "", f"[tried(lambda: open(path, 'wb')) for path in {places}]")
    assert all(str(came).split()[0] in ("OSError", "PermissionError", "FileNotFoundError") for came in tried), tried


def test_x19_x21_no_way_to_a_listener_of_this_machine_or_outside(sandbox, tmp_path):
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(tmp_path / "listener"))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0r1-code-test")
    with socket.create_server(("127.0.0.1", 0)) as server, unix, abstract:
        unix.listen()
        abstract.listen()
        attempts = [
            f"tried(socket.create_connection, ('127.0.0.1', {server.getsockname()[1]}), 1)",
            "tried(socket.create_connection, ('192.0.2.1', 80), 1)",
            "tried(socket.create_connection, ('2001:db8::1', 80), 1)",
            "tried(socket.getaddrinfo, 'example.org', 80)",
            "tried(socket.socket(2, socket.SOCK_DGRAM).sendto, b'x', ('192.0.2.1', 53))",
            "tried(socket.socket, 2, socket.SOCK_RAW, 1)",
            f"tried(socket.socket(1).connect, {str(tmp_path / 'listener')!r})",
            "tried(socket.socket(1).connect, '\\0r1-code-test')",
            "tried(socket.socket(1).connect, '/var/run/docker.sock')",
        ]
        came = ask(sandbox, "", f"[{', '.join(attempts)}]")
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()
    assert all(isinstance(error, str) for error in came), came


def test_x22_no_socket_of_another_family(sandbox):
    families = [socket.AF_VSOCK, socket.AF_ALG, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_CAN, 0, 3, 11, 45]
    came = ask(
        sandbox, "", f"[tried(socket.socket, family, socket.SOCK_RAW) for family in {[int(f) for f in families]}]"
    )
    assert came == ["OSError 97"] * len(families)  # EAFNOSUPPORT


def test_x23_a_port_of_one_job_is_not_there_in_the_next(sandbox):
    listen = "server = socket.create_server(('127.0.0.1', 34567))"
    assert ask(sandbox, listen, "server.getsockname()[1]") == 34567
    assert ask(sandbox, listen, "server.getsockname()[1]") == 34567
    assert ask(sandbox, "", "tried(socket.create_connection, ('127.0.0.1', 34567), 1)") == "ConnectionRefusedError 111"


def test_x6_x44_nothing_is_left_for_the_next_case_or_job(sandbox):
    body = (
        "seen = []\ndef f():\n"
        "    found = [len(seen), os.listdir('.'), os.listdir('/dev/shm'), os.environ.get('LEFT')]\n"
        "    seen.append(1); open('left', 'w'); open('/dev/shm/left', 'w'); os.environ['LEFT'] = 'x'\n    return found"
    )
    fresh = [0, [], [], None]
    for _ in range(2):
        results = Runner(sandbox).run(TRY + body, [{"function": "f", "args": [], "kwargs": {}}] * 3)
        assert [result.value for result in results] == [fresh] * 3


def test_x25_x28_calls_that_reach_into_the_kernel_or_others_fail(sandbox):
    column = list(seccomp.AUDIT_ARCH).index(os.uname().machine)
    numbers = {name: pair[column] for name, pair in seccomp.REFUSED.items() if pair[column] is not None}
    came = ask(
        sandbox,
        "def call(number):\n    ctypes.set_errno(0)\n"
        "    return libc.syscall(number, 0, 0, 0, 0, 0) and ctypes.get_errno()\n"
        f"numbers = {numbers}",
        "{name: call(number) for name, number in numbers.items()}",
    )
    assert came == {name: seccomp.ANSWERS.get(name, seccomp.EPERM) for name in numbers}
    young = ask(sandbox, "", "[libc.syscall(n) == -1 and ctypes.get_errno() for n in (450, 462, 0x40000000 + 39)]")
    assert young == [seccomp.ENOSYS] * 3


def test_x28_x30_new_namespaces_and_terminal_input_fail(sandbox):
    clone, ioctl = (
        seccomp.LOOKED_AT[name][list(seccomp.AUDIT_ARCH).index(os.uname().machine)] for name in ("clone", "ioctl")
    )
    flags = [0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x80]
    came = ask(sandbox, "", f"[(libc.syscall({clone}, flag | 17, 0, 0, 0, 0), ctypes.get_errno()) for flag in {flags}]")
    assert came == [(-1, seccomp.EPERM)] * len(flags)
    words = [0x5412, 0x541C, 0x1_0000_5412]  # the kernel reads 32 bits
    came = ask(
        sandbox, "", f"[(libc.syscall({ioctl}, 0, ctypes.c_ulong(word), b'x'), ctypes.get_errno()) for word in {words}]"
    )
    assert came == [(-1, seccomp.EPERM)] * len(words)


def test_x29_limits_and_priorities_cannot_be_raised(sandbox):
    body = "import resource\ndef up(limit): resource.setrlimit(limit, (resource.RLIM_INFINITY,) * 2)\n"
    limits = "(resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE)"
    assert ask(sandbox, body, f"[tried(up, limit) for limit in {limits}]") == ["ValueError"] * 4
    assert ask(sandbox, "", "tried(os.nice, -20)").startswith("PermissionError")
    assert ask(sandbox, "", "tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))") == "PermissionError 1"
    assert ask(sandbox, "", "[libc.setuid(0), libc.setgid(0), os.getuid() != 0]") == [-1, -1, True]


def test_x36_the_expected_output_is_nowhere_to_be_found(code):
    search = """
import gc, os, re, sys
def matches(text): return [m for m in re.findall(r'77[0-9]{18}', text)]
def f(a):
    found = []
    frame = sys._getframe()
    while frame:
        found += matches(repr(frame.f_locals) + repr(frame.f_globals))
        frame = frame.f_back
    found += matches(repr([o for o in gc.get_objects() if type(o) in (list, dict, tuple, str)])[:10**7])
    for pid in ('self', str(os.getppid()), '1'):
        try:
            maps = open(f'/proc/{pid}/maps').read().splitlines()
            memory = open(f'/proc/{pid}/mem', 'rb')
        except OSError:
            continue
        for line in maps:
            start, end = (int(x, 16) for x in line.split()[0].split('-'))
            try:
                memory.seek(start)
                found += [m.decode() for m in re.findall(rb'77[0-9]{18}', memory.read(end - start))]
            except (OSError, ValueError, OverflowError):
                continue
    return int(found[0]) if found else 0
"""
    needle = 77 * 10**18 + 123456789012345678
    case = {"type": "function_call", "fn_name": "f", "input": [1], "output": needle}
    info = {"language": "python", "test_cases": [case]}
    reward = replace(code, cpu_seconds=3.0)(
        prompts=["q"], completions=[f"```python\n{search}```"], verification_info=[info]
    )[0]
    assert (reward.score, reward.reason) == (0.0, "0 of 1 tests; wrong output")


def test_x37_this_project_cannot_be_imported(sandbox):
    names = ["rewards", "grpo", "data", "tests", "rewards.code.driver", "driver", "torch", "pytest", "site"]
    came = ask(sandbox, "", f"[tried(__import__, name) for name in {names[:-1]}]")
    assert came == ["ModuleNotFoundError"] * 8


def test_x43_all_tests_see_the_same_world(sandbox):
    body = "import socket\ndef f(): return [sys.argv, socket.gethostname(), sorted(os.environ.items()), os.getuid()]"
    results = Runner(sandbox).run(TRY + body, [{"function": "f", "args": [], "kwargs": {}}] * 3)
    assert results[0].value == results[1].value == results[2].value
    body = "def f(x): return [x, len(os.listdir('/proc'))]"
    results = Runner(sandbox).run(TRY + body, [{"function": "f", "args": [n], "kwargs": {}} for n in range(20)])
    assert [result.value[0] for result in results] == list(range(20))  # run in another order, answered in this


def test_the_filter_s_numbers_are_libseccomp_s():
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        pytest.skip(f"no libseccomp to ask: {error}")
    names = seccomp.REFUSED | seccomp.LOOKED_AT
    for column, arch in enumerate(seccomp.AUDIT_ARCH.values()):
        asked = {
            name: library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(arch), name.encode()) for name in names
        }
        assert {name: number if number >= 0 else None for name, number in asked.items()} == {
            name: numbers[column] for name, numbers in names.items()
        }
        assert library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(arch), b"set_mempolicy_home_node") == 450


@pytest.mark.parametrize("machine", seccomp.AUDIT_ARCH)
def test_the_filter_answers_as_its_table_says(machine):
    """Run by a slow twin of the kernel's interpreter, for the machine that this is not as well."""
    column = list(seccomp.AUDIT_ARCH).index(machine)
    arch = seccomp.AUDIT_ARCH[machine]
    for name, numbers in seccomp.REFUSED.items():
        if numbers[column] is not None:
            answer = seccomp.ERRNO | seccomp.ANSWERS.get(name, seccomp.EPERM)
            assert interpret(machine, arch, numbers[column]) == answer, name
    refused = {numbers[column] for numbers in seccomp.REFUSED.values()}
    looked_at = {numbers[column] for numbers in seccomp.LOOKED_AT.values()}
    for number in set(range(seccomp.FIRST_UNKNOWN)) - refused - looked_at:
        assert interpret(machine, arch, number) == seccomp.ALLOW
    assert interpret(machine, arch, seccomp.FIRST_UNKNOWN) == seccomp.ERRNO | seccomp.ENOSYS
    assert interpret(machine, 0x40000003, 1) == seccomp.KILL  # a 32-bit call
    clone = seccomp.LOOKED_AT["clone"][column]
    assert interpret(machine, arch, clone, 0x01200011) == seccomp.ALLOW  # what fork asks for
    assert interpret(machine, arch, clone, 0x10000011) == seccomp.ERRNO | seccomp.EPERM


def interpret(machine, arch, number, *arguments):
    data = struct.pack("<iIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", seccomp.bpf_program(machine)))
    at, loaded = 0, 0
    while True:
        code, true, false, operand = program[at]
        at += 1
        if code == seccomp.RETURN:
            return operand
        if code == seccomp.LOAD:
            (loaded,) = struct.unpack_from("<I", data, operand)
            continue
        tests = {
            seccomp.JUMP_EQUAL: loaded == operand,
            seccomp.JUMP_NOT_LESS: loaded >= operand,
            seccomp.JUMP_ANY_BIT: bool(loaded & operand),
        }
        at += true if tests[code] else false


def test_another_machine_is_refused():
    with pytest.raises(RewardError, match=r"no system-call filter for riscv64, only for x86_64 and aarch64.*limits"):
        seccomp.bpf_program("riscv64")


def test_without_bubblewrap_the_reward_refuses_to_start(monkeypatch):
    monkeypatch.setattr("rewards.code.reward.trust", Trust)  # one that has not been tested yet
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RewardError, match=r"'sandbox' does not hold.*bwrap is not installed.*isolation: limits"):
        Code().check_columns(["verification_info"])


def test_a_self_test_that_finds_a_leak_says_which(sandbox, monkeypatch):
    """A box without its filter and with a network: the self-test must notice both."""
    from rewards.code import box as module

    honest = module._bwrap

    def leaky(root, filter_fd):
        words = honest(root, filter_fd)
        at = words.index("--seccomp")
        return [word for word in words[:at] + words[at + 2 :] if word != "--unshare-net"]

    monkeypatch.setattr(module, "_bwrap", leaky)
    failed = self_test(LocalBox("sandbox")).failed
    assert any(check.startswith("connecting(") for check in failed)
    assert any(check.startswith("calling(") for check in failed) and "family(16, 3)" in failed
    assert not any(check.startswith("reading(") for check in failed)


def test_the_weaker_level_says_what_it_is_and_still_ends_loops_and_memory():
    found = self_test(LocalBox("limits"))
    assert not found.failed, found
    assert str(found).startswith("isolation 'limits' holds (7 checks")
    assert isinstance(found, SelfTest)


def test_the_sandbox_works_for_an_ordinary_user(sandbox):
    """As nobody, with the system's interpreter: user namespaces instead of root's rights."""
    if os.geteuid() != 0 or not Path("/usr/bin/python3").exists() or not shutil.which("setpriv"):
        pytest.skip("this test drops root for a while")
    program = (
        "from rewards.code.box import LocalBox; from rewards.code.self_test import self_test;"
        "print(self_test(LocalBox('sandbox')))"
    )
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-B", "-c", program]
    with tempfile.TemporaryDirectory(dir="/tmp") as copy:  # a new pytest closes its root folder to other users
        os.chmod(copy, 0o755)
        for package in ("data", "rewards"):
            shutil.copytree(ROOT / package, Path(copy, package))
        shown = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    if sys.version_info[:2] != (3, 11) and shown.returncode:
        pytest.skip(f"the system's interpreter cannot run this: {shown.stderr[-200:]}")
    assert shown.stdout.startswith("isolation 'sandbox' holds"), shown.stdout + shown.stderr


def test_the_driver_imports_the_standard_library_alone():
    import ast

    imported = [alias.name for node in ast.walk(parsed(DRIVER)) if isinstance(node, ast.Import) for alias in node.names]
    assert set(imported) <= sys.stdlib_module_names and len(DRIVER) < 2**16


def test_a_box_that_does_not_start_is_nobody_s_fault(monkeypatch, sandbox):
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/false")
    outcome = Runner(LocalBox("sandbox")).run("print(1)", [{"stdin": ""}])
    assert outcome == Unavailable(kind="infra", reason="the driver did not start")
