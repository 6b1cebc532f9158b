"""Files of the user's are never imported in place of libraries, ours or others; what a study imports is still found."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from search.cli import main
from search.study.loader import load
from tests import small_study

ROOT = Path(__file__).parent.parent
STUDY = "my_study.py:study"
OURS = {"search", "spaces", "objectives", "studies", "tests"}
MARKED = "from pathlib import Path\n\nPath({marks!r}, {name!r}).touch()\nraise RuntimeError('not this one')\n"


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a study; `sys.path` and `sys.modules` are restored."""
    source = Path(small_study.__file__).read_text()
    (tmp_path / "my_study.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def named_as_all_modules(folder: Path) -> Path:
    """Write a file of the name of every module; return the folder where those that are imported leave a mark."""
    marks = folder / "marks"
    marks.mkdir()
    known = {module.name for module in pkgutil.iter_modules()} | set(sys.stdlib_module_names)
    for name in known - OURS - {path.stem for path in folder.glob("*.py")}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # setuptools warns of distutils
            is_found = not name.startswith("_") and importlib.util.find_spec(name) is not None
        if is_found:
            (folder / f"{name}.py").write_text(MARKED.format(marks=str(marks), name=name))
    assert {"onnx.py", "torch.py", "optuna.py", "random.py", "lazy_loader.py"} <= {
        path.name for path in folder.iterdir()
    }
    return marks


def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "search", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_no_file_of_the_folder_is_imported_by_us_or_by_the_process_that_reads_a_file(workdir: Path) -> None:
    marks = named_as_all_modules(workdir)
    result = typed(workdir, "run", STUDY, "--trials", "1")
    assert result.returncode == 0, result.stderr
    assert "file_top1" in result.stdout
    assert not [path.name for path in marks.iterdir()]


@pytest.mark.slow
def test_no_file_of_the_folder_is_imported_by_workers(workdir: Path) -> None:
    marks = named_as_all_modules(workdir)
    for name in OURS - {"search"}:  # Python itself takes `-m search` from the folder
        (workdir / f"{name}.py").write_text("raise RuntimeError('not this one')\n")
    result = typed(workdir, "run", STUDY, "--trials", "3", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert not [path.name for path in marks.iterdir()]


def test_a_study_imports_from_its_folder_and_from_the_current_one(
    workdir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(workdir / "my_study.py", elsewhere / "small_beside.py")
    (workdir / "small_number.py").write_text("TRIALS = 3\n")
    (elsewhere / "own.py").write_text(
        "from small_beside import study as small\nfrom small_number import TRIALS\n\n"
        "def study():\n    return small(TRIALS)\n"
    )
    assert load(f"{elsewhere}/own.py:study", []).budget.trials == 3
    assert sys.path[-2:] == [str(workdir), str(elsewhere)]


def test_a_helper_that_an_installed_module_hides_is_named(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "filelock.py").write_text("mine = 1\n")
    (workdir / "own.py").write_text("from filelock import mine\n")
    assert main(["run", "own.py:study"]) == 2
    printed = capsys.readouterr().err
    assert "cannot import name 'mine' from 'filelock'" in printed
    assert "; `import filelock` finds the installed module, not filelock.py: rename that file" in printed
