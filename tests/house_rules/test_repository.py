"""What must and must not be in the source tree."""

from __future__ import annotations

import ast
import subprocess

from tests.house_rules.sources import PACKAGES, ROOT, SOURCES, parsed

UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADERS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", 0)}


def tracked(folder: str) -> list[str]:
    found = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.splitlines()


def test_no_ignore_file_has_swallowed_a_package() -> None:
    if not (ROOT / ".git").exists():
        return  # an unpacked archive has nothing to ignore
    for package in (*PACKAGES, "tests"):
        present = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        ignored = subprocess.run(
            ["git", "check-ignore", "--no-index", *sorted(present)], cwd=ROOT, capture_output=True, text=True
        ).stdout.splitlines()
        assert tracked(package) and ignored == [], package


# Processes of one run pickle for each other; what a worker wrote is read as data only (tests/rewards/test_service.py).
PIPES = {ROOT / "rewards" / name for name in ("service.py", "broker.py", "worker.py", "registry.py")}


def test_nothing_is_loaded_that_may_run_code() -> None:
    for path in SOURCES:
        for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                unsafe = {name.partition(".")[0] for name in named} & UNSAFE_MODULES
                assert not unsafe or path in PIPES, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and (rule := LOADERS.get(ast.unparse(node.func))):
                given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
                assert given.get(rule[0]) == rule[1], f"{path}:{node.lineno}: {rule[0]}={rule[1]} is missing"


def test_no_large_file_is_tracked() -> None:
    sizes = {name: (ROOT / name).stat().st_size for name in tracked(".") if (ROOT / name).is_file()}
    assert {name: size for name, size in sizes.items() if size > 2 * 2**20} == {}
