"""An import may only point up the list of layers (what is above knows nothing of what is below)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from tests.house_rules.sources import PACKAGES, ROOT, SOURCES, TESTS, parsed

# Layer -> the modules (or packages) in it. A new module must be put somewhere; the tests below say so.
LAYERS: dict[str, tuple[str, ...]] = {
    "data: where problems come from": ("data",),
    "rewards: text to score": ("rewards",),
    "grpo pure: words, knobs, tensors to tensors": (
        "grpo.advantages",
        "grpo.config.batch_plan",
        "grpo.batching",
        "grpo.config.coerce",
        "grpo.config",
        "grpo.errors",
        "grpo.config.foreign_keys",
        "grpo.config.help_text",
        "grpo.config.key_rules",
        "grpo.correction",
        "grpo.device",
        "grpo.losses",
        "grpo.config.mixture",
        "grpo.packing",
        "grpo.plan",
        "grpo.config.presets",
        "grpo.config.schedule",
        "grpo.scoring",
        "grpo.selection",
        "grpo.monitor.text",
        "grpo.config.translate",
        "grpo.sampling_mask",
        "grpo.types",
        "grpo.weighting",
    ),
    "grpo world: models, engines, processes, files": (
        "grpo.checkpoint.store",
        "grpo.config.checks",
        "grpo.monitor.completions",
        "grpo.monitor.counting",
        "grpo.monitor.grade",
        "grpo.distributed",
        "grpo.evaluation",
        "grpo.files",
        "grpo.intervals",
        "grpo.monitor.examples",
        "grpo.monitor.journal",
        "grpo.logprobs",
        "grpo.checkpoint.manifest",
        "grpo.monitor.metrics",
        "grpo.config.parse",
        "grpo.policy",
        "grpo.monitor.progress",
        "grpo.prompts",
        "grpo.monitor.samples",
        "grpo.checkpoint.runlock",
        "grpo.sampled",
        "grpo.sampling",
        "grpo.sharding",
        "grpo.signals",
        "grpo.stats",
        "grpo.checkpoint.tensorfile",
        "grpo.monitor.trackers",
    ),
    "grpo flow: the step, the loop": (
        "grpo.monitor.banner",
        "grpo.course",
        "grpo.doctor",
        "grpo.dry_run",
        "grpo.learner",
        "grpo.loop",
        "grpo.monitor.records",
        "grpo.resume",
        "grpo.rounds",
        "grpo.routing",
        "grpo.setup",
        "grpo.step",
        "grpo.checkpoint.keeper",
        "grpo.checkpoint.state",
    ),
    "grpo face: what a person looks at afterwards": (
        "grpo.monitor.charts",
        "grpo.monitor.compare",
        "grpo.monitor.evaluation_page",
        "grpo.monitor.markup",
        "grpo.monitor.paired",
        "grpo.monitor.panels",
        "grpo.cli",
        "grpo.monitor.report",
        "grpo.monitor.report_style",
        "grpo.monitor.show",
    ),
    "recipes: choices": ("recipes",),
}
NAMES = list(LAYERS)

# Libraries a layer may import, at any depth; recipes may import everything that is declared.
LIBRARIES: dict[str, set[str]] = {
    NAMES[0]: {"datasets", "pyarrow", "reasoning_gym"},
    NAMES[1]: {"mpmath"},
    NAMES[2]: {"torch", "yaml"},
    NAMES[3]: {
        "accelerate", "numpy", "peft", "pyarrow", "safetensors", "tokenizers", "torch", "tqdm", "transformers", "trl",
        "vllm", "yaml",
    },
    NAMES[4]: {"numpy", "torch", "transformers"},
    NAMES[5]: {"rich", "yaml"},
}  # fmt: skip
DISTRIBUTIONS = {"PIL": "pillow", "math_verify": "math-verify", "yaml": "pyyaml", "reasoning_gym": "reasoning-gym"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One arrow. `target` is a module of this project or the name of a library; `top`: runs when the file is loaded."""

    source: str
    target: str
    top: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in SOURCES}


def targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
        return [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import in line {node.lineno}: write the full name"
        named = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in FILES else str(node.module) for name in named]
    return []


def imports_of(source: str) -> Iterator[Import]:
    tree = parsed(FILES[source].read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        for target in targets(node):
            root = target.partition(".")[0]
            if root not in sys.stdlib_module_names:
                yield Import(source=source, target=target if root in PACKAGES else root, top=id(node) in top)


IMPORTS = [arrow for source in FILES for arrow in imports_of(source)]


def layers_of(module: str) -> list[str]:
    """The layers of the longest name in the table that the module has or lies under."""
    homes = [
        (len(member), name)
        for name, members in LAYERS.items()
        for member in members
        if module == member or module.startswith(member + ".")
    ]
    return [name for length, name in homes if length == max(homes)[0]]


def rank(module: str) -> int:
    """How deep the module's layer lies; a module without a layer counts as a recipe until it has one."""
    return NAMES.index((layers_of(module) or NAMES[-1:])[0])


def test_every_module_lives_in_exactly_one_layer() -> None:
    assert len(FILES) > 50
    homeless = {module: layers_of(module) for module in FILES if len(layers_of(module)) != 1}
    assert set(homeless) == {"grpo", "grpo.checkpoint", "grpo.monitor"}, homeless
    assert all(FILES[package].read_text() == "" for package in homeless)


def test_every_name_in_the_table_is_a_module() -> None:
    assert [member for members in LAYERS.values() for member in members if member not in FILES] == []


def test_no_arrow_points_down() -> None:
    ours = [arrow for arrow in IMPORTS if arrow.target in FILES]
    assert len(ours) > 100
    wrong = [a for a in ours if rank(a.source) < rank(a.target)]
    assert wrong == []


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for arrow in IMPORTS:
        if arrow.target in FILES:
            graph[arrow.source].add(arrow.target)
    in_order = list(TopologicalSorter(graph).static_order())  # raises CycleError and names the circle
    assert sorted(in_order) == sorted(FILES)


def test_a_layer_imports_only_its_libraries() -> None:
    libraries = [arrow for arrow in IMPORTS if arrow.target not in FILES]
    used = {layer: {a.target for a in libraries if layers_of(a.source) == [layer]} for layer in LIBRARIES}
    assert used == LIBRARIES  # both ways: what nobody uses any more leaves the table


def test_data_and_rewards_load_their_libraries_where_they_are_used() -> None:
    assert [a for a in IMPORTS if a.top and a.target not in FILES and rank(a.source) < 2] == []


def test_trl_is_imported_by_recipes_and_tests_alone_but_for_its_vllm_client() -> None:
    here = [arrow for arrow in IMPORTS if arrow.target == "trl" and not arrow.source.startswith("recipes.")]
    assert [arrow for arrow in here if arrow.top or not arrow.source.startswith("grpo.sampling.vllm.")] == []


def test_importing_all_of_data_and_rewards_takes_nothing_heavy_along() -> None:
    modules = [module for module in FILES if module.partition(".")[0] in ("data", "rewards")]
    heavy = ["torch", "transformers", "accelerate", "datasets", "pyarrow", "numpy", "sympy", "mpmath", "reasoning_gym"]
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = {distribution(line) for line in project["dependencies"]}
    imported = {DISTRIBUTIONS.get(a.target, a.target) for a in IMPORTS if a.target not in FILES}
    extras = {name: {distribution(line) for line in lines} for name, lines in project["optional-dependencies"].items()}
    optional = {name for extra, names in extras.items() if extra != "dev" for name in names}
    assert required <= imported <= required | optional

    trees = [parsed(path.read_text(encoding="utf-8")) for path in TESTS]
    roots = {name.partition(".")[0] for tree in trees for node in ast.walk(tree) for name in targets(node)}
    used_by_tests = {DISTRIBUTIONS.get(root, root) for root in roots - sys.stdlib_module_names} - {*PACKAGES, "tests"}
    of_the_makefile = {"ruff", "pytest-xdist"}  # a command, and an option of another
    assert used_by_tests - required == extras["dev"] - of_the_makefile


def distribution(requirement: str) -> str:
    return re.split(r"[<>=!~ \[]", requirement)[0]
