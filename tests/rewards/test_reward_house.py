"""What holds for every file of the package."""

import ast
import subprocess
import sys

from tests.house_rules.sources import ROOT, parsed

FILES = sorted((ROOT / "rewards").rglob("*.py"))
FORBIDDEN = {"eval", "exec", "compile", "sympify", "parse_expr", "lambdify", "S", "pickle", "loads", "literal_eval"}
EXECUTING = {"pickle", "marshal", "sympy", "torch", "subprocess"}
# Who may use which of them: calls between trainer, broker and workers are pickled; what a worker wrote is read by
# service.py alone, with an unpickler that knows data types only (tests/rewards/test_service.py forges a result).
ALLOWED = {
    "service.py": {"pickle", "subprocess", "pickle.loads"},
    "broker.py": {"pickle", "pickle.loads"},
    "worker.py": {"pickle", "pickle.loads"},
    "registry.py": {"pickle"},
    # The driver runs in the box, where model text is meant to be executed; box.py starts it. Data rows' assertions are
    # written by the data's authors.
    "code/driver.py": {"eval", "exec", "compile"},
    "code/box.py": {"subprocess"},
    "code/asserts.py": {"ast.literal_eval"},
}
HEAVY = ["torch", "sympy", "mpmath", "reasoning_gym", "transformers", "datasets", "numpy"]


def calls(tree):
    """Dotted names of everything that is called."""
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_nothing_that_executes_text_is_called_or_imported():
    assert len(FILES) > 10
    for path in FILES:
        tree = parsed(path.read_text())
        allowed = {"re.compile", "json.loads", *ALLOWED.get(str(path.relative_to(ROOT / "rewards")), ())}
        called = {name for name in calls(tree) if name.rpartition(".")[2] in FORBIDDEN}
        assert called <= allowed, path
        assert EXECUTING & set(imports(tree)) <= allowed, path


def test_importing_rewards_takes_nothing_heavy_along():
    code = f"import sys, rewards, rewards.accuracy, rewards.gym; print([m for m in {HEAVY} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_plain_number_is_judged_without_any_library():
    code = (
        "import sys; from rewards.math.equal import verify; verify(gold='1,234', answer='1234.0');"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
