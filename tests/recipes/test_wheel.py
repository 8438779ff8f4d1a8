"""An ordinary install, away from the checkout: packages, the recipes' files and the console script are all there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("data", "rewards", "grpo", "recipes")
NOT_INSTALLED = {
    Path(page)
    for page in (
        "recipes/README.md",
        "recipes/distil.md",
        "recipes/own_model.md",
        "recipes/stages.svg",
        "rewards/README.md",
        "grpo/sampling/vllm/README.md",
    )
}

pytestmark = pytest.mark.normal


def run(*words: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source", cwd=folder)
    [wheel] = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


def test_every_file_of_the_packages_is_in_the_wheel(installed: Path) -> None:
    source = installed.with_name("source")
    files = {path.relative_to(source) for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()}
    missing = {path for path in files if not (installed / path).is_file()}
    assert len(files) > 100 and missing == NOT_INSTALLED
    assert not (installed / "tests").exists()


def test_the_demo_and_the_console_script_run_from_it(installed: Path, tmp_path: Path) -> None:
    shown = run(
        sys.executable,
        "-c",
        "import recipes.demo; print(recipes.demo.__file__); recipes.demo.main(['--dry_run'])",
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert shown.startswith(str(installed)) and "=== plan" in shown
    assert "r1-toolkit" in run(installed / "bin" / "grpo", "version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert list(tmp_path.iterdir()) == []
