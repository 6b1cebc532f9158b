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
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")  # a copy, since a build writes next to its files
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True)
    (built,) = folder.glob("slimfront-*.whl")
    return built


def test_it_holds_the_packages_with_their_types_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    inside = ROOT / "search" / "slimfront"  # which is a package of its own where it is installed
    for package in PACKAGES:
        paths = [path for path in (ROOT / package).rglob("*.py") if not path.is_relative_to(inside)]
        assert {path.relative_to(ROOT).as_posix() for path in paths} <= set(names)
        assert f"{package}/py.typed" in names
    of_slimfront = {f"slimfront/{path.name}" for path in inside.iterdir() if path.is_file()}
    assert {"slimfront/__init__.py", "slimfront/__init__.pyi", "slimfront/py.typed"} <= of_slimfront <= set(names)
    assert not [name for name in names if name.startswith("search/slimfront")]
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
    run("slimfront", "report", "studies.digits:study")
    assert (tmp_path / "runs" / "digits" / "report" / "front.html").stat().st_size > 1e6  # with its scripts
    run("slimfront", "export", "studies.digits:study", "--pick", "knee")
    assert (tmp_path / "runs" / "digits" / "export" / "model.onnx").stat().st_size > 0


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_an_installation_imports_its_own_packages_whatever_is_in_the_folder(
    wheel: Path, source: Path, tmp_path: Path, kind: str
) -> None:
    """The libraries are those of this environment."""
    venv.create(tmp_path / "env", with_pip=True)
    folder = tmp_path / "env" / "bin"
    libraries = Path(pytest.__file__).parents[1]
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n")
    shutil.rmtree(site / "setuptools", ignore_errors=True)  # too old where Python brings one
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        work = [str(folder / command[0]), *command[1:]]
        done = subprocess.run(work, check=False, cwd=work_folder, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    work_folder = tmp_path / "work"
    work_folder.mkdir()
    what = [str(wheel)] if kind == "wheel" else ["-e", str(source)]
    run("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", *what)
    for name in ("search", "spaces", "objectives"):
        (work_folder / f"{name}.py").write_text("raise RuntimeError('a file of the user')\n")
    code = "import slimfront, search; print(slimfront.Macs.__module__, search.__file__, slimfront.__file__)"
    module, *files = run("python", "-c", code).split()
    place = site if kind == "wheel" else source
    assert module == "objectives.macs"
    assert all(Path(file).is_relative_to(place) for file in files)
    clean["PYTHONPATH"] = str(work_folder)
    assert run("slimfront", "--version").startswith("slimfront ")
    assert "inspect" in run("python", "-m", "slimfront", "--help")
