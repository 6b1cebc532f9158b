"""Find the function that a user names, and call it with what the user sets."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.study.errors import UserError
from search.study.spec import StudySpec
from spaces.network.messages import unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

APART = "slimfront_study"  # a user's file may be called like one of our own modules, or torch


TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load(target: str, settings: list[str]) -> StudySpec:
    """Return the spec that `file.py:function` or `package.module:function` returns.

    Parameters
    ----------
    target
        The function.
    settings
        Arguments for it, each as `name=value`.

    Raises
    ------
    UserError
        If there is no such function, it does not take the settings, or its data is missing.
    """
    function = _function(target)
    given = _settings(function, target, settings)
    try:
        spec = function(**given)
    except UserError as error:
        raise UserError(f"{target}: {error}") from error
    except Exception as error:
        raise UserError(f"{target}: {type(error).__name__}: {error} ({_where(error)}); --debug shows more") from error
    if not isinstance(spec, StudySpec):
        raise UserError(f"{target} must return a StudySpec, but it returned {type(spec).__name__}")
    return spec


def _function(target: str) -> Callable[..., Any]:
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UserError(
            f"a study must be named as file.py:function or package.module:function, but got {target!r}; "
            "for example studies/digits.py:study"
        )
    module = _module(place)
    found = {key: value for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")}
    if name not in found:
        own = [key for key, value in found.items() if value.__module__ == module.__name__]
        raise UserError(f"{place}: {unknown_name('function', name, own)}")
    return found[name]


def _module(place: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise UserError(f"no file {place}; give the path of the file with the study, such as studies/digits.py")
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        sys.path.insert(0, str(path.resolve().parent))  # a study may import what lies beside it
        name = f"{APART}.{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{place} cannot be imported: {type(error).__name__}: {error} ({_where(error)})") from error
    return module


def _where(error: Exception) -> str:
    """Return the file and line where the error arose."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def _settings(function: Callable[..., Any], target: str, settings: list[str]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    given: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set takes name=value, but got {setting!r}")
        if name not in parameters:
            raise UserError(f"{target}: {unknown_name('setting', name, parameters)}")
        given[name] = _value(text, parameters[name])
    missing = [
        name
        for name, taken in parameters.items()
        if taken.default is taken.empty
        and taken.kind not in {taken.VAR_POSITIONAL, taken.VAR_KEYWORD}
        and name not in given
    ]
    if missing:
        raise UserError(f"{target} needs a value for {missing[0]!r}; give it with --set {missing[0]}=VALUE")
    return given


def _value(text: str, parameter: inspect.Parameter) -> Any:  # noqa: ANN401 - whatever the function takes
    """Read the text as the type of the parameter's default."""
    kind = type(parameter.default)
    if kind is bool:
        if text.lower() not in TRUTHS:
            raise UserError(f"{parameter.name} must be true or false, but got {text!r}")
        return TRUTHS[text.lower()]
    if kind not in {int, float}:
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"{parameter.name} must be of type {kind.__name__}, but got {text!r}") from error
