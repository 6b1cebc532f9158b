"""The rules of the project: its map in the documentation, its commands, its files and its dependencies."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from search.command_line import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("search", "spaces", "objectives", "studies")
LONGEST_FILE = 320


def _modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _tree() -> str:
    page = (ROOT / "docs/pages/code.md").read_text()
    found = re.search(r"```\n(search/ .*?)```", page, re.DOTALL)
    assert found
    return found.group(1)


def test_the_tree_of_the_documentation_names_every_module_once() -> None:
    named = re.findall(r"^\s*(\w+\.py|\w+/)\s", _tree(), re.MULTILINE)
    there = [path.name for path in _modules() if path.name != "__init__.py"]
    assert sorted(name for name in named if name.endswith(".py")) == sorted(there)


def test_the_documentation_names_every_command() -> None:
    page = (ROOT / "docs/pages/commands.md").read_text()
    for command in COMMANDS:
        assert re.search(rf"`slimfront {command}[ `]", page)


def test_files_stay_short() -> None:
    long = {str(path.relative_to(ROOT)): lines for path in _modules()
            if (lines := len(path.read_text().splitlines())) > LONGEST_FILE}  # fmt: skip
    assert not long


@pytest.mark.parametrize("word", ["utils", "common", "helpers", "misc", "manager"])
def test_no_module_has_a_vague_name(word: str) -> None:
    assert not [path for path in _modules() if word in path.stem]


def test_a_name_of_a_constant_means_one_thing() -> None:
    """Packages that do not import each other may repeat a constant, with the same value."""
    meanings: dict[str, set[str]] = {}
    library = [path for path in _modules() if not path.is_relative_to(ROOT / "studies")]
    for path in library:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                for name in set(names) - {"__all__"}:
                    meanings.setdefault(name, set()).add(ast.unparse(node.value))
    assert {"FLOAT_BITS", "BYTE_BITS"} <= set(meanings)
    assert not {name: values for name, values in meanings.items() if len(values) > 1}


def test_the_library_unpickles_nothing_and_runs_no_text() -> None:
    """What docs/SECURITY.md promises of reading files."""
    forbidden = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    found = []
    for path in [path for path in _modules() if not path.is_relative_to(ROOT / "studies")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [path for alias in node.names if alias.name.partition(".")[0] in forbidden]
            elif isinstance(node, ast.ImportFrom):
                found += [path] * ((node.module or "").partition(".")[0] in forbidden)
            elif isinstance(node, ast.Call):
                named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                unsafe = ast.unparse(node.func) == "torch.load" and named.get("weights_only") != "True"
                unsafe |= "shell" in named or ast.unparse(node.func) in {"eval", "exec", "os.system"}
                found += [path] * unsafe
    assert not found


def test_every_package_says_what_it_is_for() -> None:
    packages = [path for path in _modules() if path.name == "__init__.py"]
    assert packages
    assert not [path for path in packages if not ast.get_docstring(ast.parse(path.read_text()))]


def _loaded_by(code: str) -> set[str]:
    code = f"import sys; {code}; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return set(output.stdout.split())


def test_runtimes_and_plots_are_not_loaded_by_the_space() -> None:
    loaded = _loaded_by("import spaces; [getattr(spaces, name) for name in spaces.__all__]")
    assert {"torch", "spaces.axes.prune"} <= loaded
    assert not {"onnx", "onnxruntime", "plotly", "matplotlib", "optuna", "torchvision"} & loaded


def test_help_and_the_front_load_neither_torch_nor_plots() -> None:
    loaded = _loaded_by("import search.cli, search.command_line; search.command_line.parser()")
    assert not {"torch", "optuna", "pandas", "numpy", "scipy"} & loaded
    loaded = _loaded_by("import search.commands.stored_front, search.commands.carrying_out")
    assert {"optuna", "pandas"} <= loaded
    assert not {"torch", "plotly", "matplotlib", "sklearn"} & loaded


@pytest.mark.parametrize("package", ["objectives", "objectives.runtimes", "spaces", "search"])
def test_every_name_of_a_package_can_be_imported(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name).__class__ is not ModuleType
    stub = (ROOT / package.replace(".", "/") / "__init__.pyi").read_text()
    assert sorted(module.__all__) == sorted(ast.literal_eval(stub.partition("__all__ = ")[2]))


def test_every_dependency_has_a_comment_on_its_use() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    dependencies = [line for line in lines if re.match(r'\s+"[a-zA-Z-]+[><=]', line)]
    assert dependencies
    assert not [line for line in dependencies if "#" not in line]
