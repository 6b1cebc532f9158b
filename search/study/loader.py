"""Load a study: import the function that the user names and call it with the user's settings."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.runtimes.isolated_process import ROOT, import_file
from search.study.errors import UserError
from search.study.files import RUNS, ensure_study_file
from search.study.numbers import PACKAGES
from search.study.spec import StudySpec
from search.study.stored import STARTED_WITH
from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# Package under which a user's file is imported: its own name may be that of one of our modules, or of torch.
USER_PACKAGE = "slimfront_study"
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load(target: str, settings: list[str]) -> StudySpec:
    """Call the function that a study is named by, and return its spec.

    Parameters
    ----------
    target
        The function, as `file.py:function` or `package.module:function`.
    settings
        Arguments of the function, each as `name=value`.

    Raises
    ------
    UserError
        If there is no such function, it does not take the settings, it fails (for example because its data is missing),
        or it returns no `StudySpec`.
    """
    function = _function(target)
    arguments = _arguments(function, target, settings)
    try:
        spec = function(**arguments)
    except UserError as error:
        raise UserError(f"{target}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{target}: {type(error).__name__}: {error} ({_line_of(error)}); --debug shows more") from error
    if not isinstance(spec, StudySpec):
        raise UserError(f"{target} must return a StudySpec, but it returned {type(spec).__name__}")
    return spec


def _function(target: str) -> Callable[..., Any]:
    """Return the function of a module; names that begin with an underscore are private."""
    location, _, name = target.rpartition(":")
    if ":" not in target and not target.endswith(".py") and (os.sep in target or Path(target).is_dir()):
        known = ", ".join(str(path.parent) for path in sorted(Path(RUNS).glob(f"*/{STARTED_WITH}"))) or "none"
        raise UserError(
            f"no study was run in the folder {target}; those in {RUNS}/ are: {known}; a study may also be named as "
            "file.py:function"
        )
    if not location or not name:
        raise UserError(
            "a study must be named as file.py:function or package.module:function, for example "
            f"studies/digits.py:study, but got {target!r}"
        )
    module = imported(location)
    functions = {
        key: value for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")
    }
    if name not in functions:
        defined_here = [key for key, value in functions.items() if value.__module__ == module.__name__]
        raise UserError(f"{location}: {unknown_name('function', name, defined_here)}")
    return functions[name]


def imported(location: str) -> ModuleType:
    """Import a file or a module; both may import from the working directory, a file also from its own folder.

    These folders come last: what we and our libraries import later, such as onnx, is not a file of the user's.
    """
    path, folders = Path(location), [Path.cwd()]
    ensure_study_file(location)
    if location.endswith(".py"):
        folders.append(path.resolve().parent)
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    try:
        if not location.endswith(".py"):
            return importlib.import_module(location)
        return import_file(f"{USER_PACKAGE}.{path.stem}", path)
    except (Exception, SystemExit) as error:
        hidden = _hidden(folders, str(error))
        raise UserError(
            f"{location} cannot be imported: {type(error).__name__}: {error} ({_line_of(error)}){hidden}"
        ) from error


def _hidden(folders: list[Path], message: str) -> str:
    """Say that a file of the user's is hidden by an installed module, if this is why an import failed."""
    hidden = sorted(
        path.name
        for folder in folders
        for path in folder.glob("*.py")
        if repr(path.stem) in message
        and Path(getattr(sys.modules.get(path.stem), "__file__", None) or path).resolve() != path.resolve()
    )
    if not hidden:
        return ""
    return f"; `import {hidden[0].removesuffix('.py')}` finds the installed module, not {hidden[0]}: rename that file"


def _line_of(error: BaseException) -> str:
    """Return the file and line that raised the error: the last one of the user's, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    libraries += [str(ROOT / name) for name in PACKAGES]
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def _arguments(function: Callable[..., Any], target: str, settings: list[str]) -> dict[str, Any]:
    """Return the arguments that the settings give to the function; raise `UserError` for unknown or missing ones."""
    parameters = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set takes name=value, but got {setting!r}")
        if name not in parameters:
            raise UserError(f"{target}: {unknown_name('setting', name, parameters)}")
        arguments[name] = _value(text, parameters[name])
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        and name not in arguments
    ]
    if missing:
        raise UserError(f"{target} needs a value for {missing[0]!r}; give it with --set {missing[0]}=VALUE")
    return arguments


def _value(text: str, parameter: inspect.Parameter) -> Any:  # noqa: ANN401 - any type that the function takes
    """Convert the text to the type of the parameter's default: bool, int or float; otherwise it stays text."""
    kind = type(parameter.default)
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise UserError(f"{parameter.name} must be true or false, but got {text!r}")
        return BOOLEANS[text.lower()]
    if kind not in {int, float}:
        return text
    try:
        value = kind(text)
    except ValueError as error:
        raise UserError(f"{parameter.name} must be of type {kind.__name__}, but got {text!r}") from error
    if kind is float and not math.isfinite(value) and math.isfinite(parameter.default):
        raise UserError(f"{parameter.name} must be a finite number, but got {text!r}")
    return value
