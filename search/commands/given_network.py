"""The user's network and its weights, as `slimfront init` asks for them: found, built and loaded at once."""

from __future__ import annotations

import ast
import keyword
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from search.study.errors import UserError
from search.study.loader import imported
from spaces.network.messages import first_line, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

NONE = "none"  # the answer for no weights, and for no normalization
TORCHVISION = "torchvision.models"
STATES = ("state_dict", "model_state_dict", "model")  # keys under which files hold the weights beside other things
SUCH_AS_NETWORK = "such as my_net.py:MyNet or torchvision.models:resnet18"


@dataclass(frozen=True)
class Named:
    """A function, a class or an object that the study imports.

    Attributes
    ----------
    module, name
        What follows `from` and `import`.
    found
        The object.
    """

    module: str
    name: str
    found: Any


@dataclass(frozen=True)
class Given:
    """The user's network.

    Attributes
    ----------
    named
        Where it is.
    arguments
        The arguments that it is called with, as typed.
    network
        The network, in evaluation mode.
    making
        The lines of the study that make it; they assign it to `model`.
    """

    named: Named
    arguments: str
    network: nn.Module
    making: tuple[str, ...]


def named(target: str, folder: Path, what: str, example: str) -> Named:
    """Import what a user names, in the way in which a study in a folder will import it.

    Parameters
    ----------
    target
        `file.py:name` or `package.module:name`.
    folder
        The folder of the study.
    what, example
        For messages: what it is, and an example.

    Raises
    ------
    UserError
        If it cannot be imported.
    """
    location, _, name = target.rpartition(":")
    if not location or not name:
        raise UserError(f"{what} must be named as file.py:name or package.module:name, {example}, but got {target!r}")
    path = Path(location)
    if location.endswith(".py") and not path.is_file():
        raise UserError(f"no file {location}; give the path of the file with {what}")
    sys.path += [str(folder)] * (str(folder) not in sys.path)
    dotted = _dotted(path, folder) if location.endswith(".py") else location
    earlier = getattr(sys.modules.get(dotted), "__file__", None)
    if earlier and Path(earlier).resolve() == path.resolve():
        del sys.modules[dotted]  # the user may have corrected the file since it was imported for an earlier answer
    module = imported(dotted)
    file = getattr(module, "__file__", None) or "a part of Python"
    if location.endswith(".py") and Path(file).resolve() != path.resolve():
        raise UserError(f"`import {dotted}` finds {file}, not {location}: rename that file")
    if not hasattr(module, name):
        raise UserError(f"{location}: {unknown_name('function or class', name, _public(module))}")
    return Named(dotted, name, getattr(module, name))


def network_of(target: str, folder: Path) -> Given:
    """Return the network of a class or function, or an object.

    Parameters
    ----------
    target
        As `named` takes it; arguments may follow in brackets, such as `torchvision.models:resnet18(num_classes=5)`.
    folder
        The folder of the study.

    Raises
    ------
    UserError
        If it is not a network.
    """
    path, bracket, arguments = target.partition("(")
    found = named(path.strip(), folder, "the network", SUCH_AS_NETWORK)
    if isinstance(found.found, nn.Module):
        return Given(found, "", found.found.eval(), (f"model = {found.name}",))
    given = arguments.rpartition(")")[0] if bracket else ""
    positional, by_name = _arguments(given)
    network = called(lambda: found.found(*positional, **by_name), f"{found.name}({given})", "a network")
    if not isinstance(network, nn.Module):
        raise UserError(f"{target} must give a torch.nn.Module, but gave {type(network).__name__}")
    return Given(found, given, network.eval(), (f"model = {found.name}({given})",))


def _arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the values of arguments as they are written in Python, all of them literals."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        by_name = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords if each.arg}
        return [ast.literal_eval(each) for each in call.args], by_name
    except (SyntaxError, ValueError) as error:
        raise UserError(f"arguments must be numbers and texts, such as num_classes=5, but got {text!r}") from error


def called(function: Callable[[], object], words: str, what: str) -> object:
    """Return what a function of the user's returns.

    Raises
    ------
    UserError
        If it fails.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{words} failed: {type(error).__name__}: {first_line(error)}; this call must return {what}"
        ) from error


def with_weights(given: Given, text: str, folder: Path) -> Given:
    """Return the network with the weights of a file, or, for one of torchvision, with weights by their name.

    Raises
    ------
    UserError
        If they cannot be read, or are not those of the network.
    """
    if text == NONE:
        return given
    path, name = Path(text), given.named.name
    if not path.is_file() and given.named.module == TORCHVISION:
        names = weights_names(name)
        if text not in names:
            known = ", ".join(names) or "none"
            raise UserError(f"no file {text}, and {name} has no weights of that name; its weights are {known}")
        arguments = ", ".join(filter(None, [f'weights="{text}"', given.arguments]))
        return network_of(f"{TORCHVISION}:{name}({arguments})", folder)
    if not path.is_file():
        raise UserError(f"no file {text}; give the path of the weights, or {NONE} if the network has them already")
    reading, state = _read(path, folder)
    try:
        given.network.load_state_dict(state)
    except RuntimeError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines()[1:]]
        raise UserError(
            f"{text} does not hold the weights of {name}: {lines[0] if lines else first_line(error)}"
        ) from error
    return replace(given, making=(*given.making, f"model.load_state_dict({reading})"))


def weights_names(name: str) -> list[str]:
    """Return the names of the weights that torchvision has for a network."""
    try:
        return list(models.get_model_weights(name).__members__)
    except ValueError:
        return []


def place(path: Path, folder: Path) -> str:
    """Return the Python code of a path, for a study in a folder: relative to the study's file where it is below it."""
    path, folder = path.resolve(), folder.resolve()
    return f'HERE / "{path.relative_to(folder).as_posix()}"' if path.is_relative_to(folder) else f'Path("{path}")'


def _read(path: Path, folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the code that reads weights, and the weights; no code of the file is executed."""
    code = f'torch.load({place(path, folder)}, map_location="cpu", weights_only=True)'
    try:
        if path.suffix == ".safetensors":
            return f"load_file({place(path, folder)})", load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as weights ({type(error).__name__}: {first_line(error)[:100]}); write it with "
            "torch.save(network.state_dict(), path), or as .safetensors"
        ) from error
    for key in STATES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return f'{code}["{key}"]', content[key]
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold the state_dict of the network, but holds {type(content).__name__}")
    return code, content


def _dotted(path: Path, folder: Path) -> str:
    """Return the name by which a study in a folder imports a file."""
    path, folder = path.resolve(), folder.resolve()
    if not path.is_relative_to(folder):
        raise UserError(f"{path} must be in the folder of the study, {folder}, or below it; or name --out beside it")
    parts = path.relative_to(folder).with_suffix("").parts
    if wrong := [part for part in parts if not part.isidentifier() or keyword.iskeyword(part)]:
        raise UserError(f"Python cannot import {path}: rename {wrong[0]!r} to letters, digits and underscores")
    return ".".join(parts)


def _public(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
