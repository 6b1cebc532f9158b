"""The wheel, in an environment that holds nothing else of ours, runs the demo's study from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = "search", "spaces", "objectives", "studies"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")  # a copy, since a build writes next to its files
    folder = tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (built,) = folder.glob("slimfront-*.whl")
    return built


def test_it_holds_the_packages_with_their_types_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for package in PACKAGES:
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert modules <= set(names)
        assert f"{package}/py.typed" in names
    assert not [name for name in names if name.startswith("tests/")]


def test_it_runs_the_demo_study_from_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    folder = tmp_path / "env" / "bin"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(folder / command[0]), *command[1:]],
            check=False, cwd=tmp_path, env=clean, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", f"{wheel}[onnx]")
    assert run("slimfront", "--version").startswith("slimfront ")
    assert "teacher" in run("slimfront", "run", "studies.digits:study", "--trials", "3")
    run("slimfront", "export", "studies.digits:study", "--pick", "knee")
    assert (tmp_path / "runs" / "digits" / "export" / "model.onnx").stat().st_size > 0
