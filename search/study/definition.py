"""The definition of a study as text, to compare a stored study with the study in the user's file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spaces.network.copying import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import DataclassInstance

    from search.study.spec import StudySpec

# Settings that do not change the result of a trial: how long the study runs, who proposes its plans, what follows the
# search, the test split, which only `confirm` reads, the text of the goal, whose limits are compared, and what is put
# before the network in an exported file.
SETTINGS_WITHOUT_EFFECT = ("budget", "sampler", "confirmation", "runtime", "splits.test", "goal", "preprocessing")
REMOVED_SETTINGS = ("start.seconds", "sampler")  # version 0.1 stored them
_LAZY = "no values yet"  # in place of the digest of a weight that is not initialized
MODULE_PREFIX = re.compile(r"[A-Za-z_]\w*\.(?=[A-Za-z_])")  # version 0.1 stored it before the names of classes


def define(spec: StudySpec) -> dict[str, str]:
    """Return every setting that the result of a trial depends on, by its path in the spec.

    Classes and functions are named without their module, so that a move to another file changes no definition.
    """
    return {
        path: value
        for field in dataclasses.fields(spec)
        for path, value in _settings(field.name, getattr(spec, field.name), _name)
    }


def define_value(value: object) -> dict[str, str]:
    """Return the settings of one part of a study, such as a recipe."""
    return dict(_settings(type(value).__name__, value, _name))


def define_value_with_modules(value: object) -> dict[str, str]:
    """Return the settings as version 0.1 did: it named classes and functions with the last part of their module."""
    return dict(_settings(type(value).__name__, value, lambda item: f"{_module(item)}.{_name(item)}"))


def differences(stored: dict[str, str], now: dict[str, str]) -> list[str]:
    """Describe every setting that differs: its path, its stored value and its present value."""
    return [
        f"{path} was {stored.get(path, 'absent')}, is {now.get(path, 'absent')}"
        for path in dict.fromkeys((*stored, *now))
        if path not in REMOVED_SETTINGS
        if path not in stored or path not in now or not _equal(stored[path], now[path])
    ]


def _equal(stored: str, now: str) -> bool:
    """Return whether two values are equal; version 0.1 stored names with a module."""
    return now in {stored, MODULE_PREFIX.sub("", stored, count=1)}


def _settings(path: str, value: object, name: Callable[[object], str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every setting in a value; `name` names its classes and functions."""
    if path in SETTINGS_WITHOUT_EFFECT:
        return
    if isinstance(value, nn.Module):
        yield path, f"{type(unwrapped(value)).__name__} {fingerprint(value)}"
    elif isinstance(value, Tensor):
        yield path, f"{tuple(value.shape)} {_digest(value)}"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.repr:  # type: ignore[attr-defined]
        yield path, type(value).__name__
        for field in _given_fields(value):
            yield from _settings(f"{path}.{field}", getattr(value, field), name)
    elif isinstance(value, tuple) and not all(isinstance(item, int | float | str) for item in value):
        for index, item in enumerate(value):
            yield from _settings(f"{path}[{index}]", item, name)
    elif isinstance(value, functools.partial):
        yield path, f"{name(value.func)}{value.args}{sorted(value.keywords.items())}"
    elif callable(value) and not dataclasses.is_dataclass(value):
        yield path, name(value)
    else:
        yield path, repr(value)


def _given_fields(value: DataclassInstance) -> list[str]:
    """Return the fields of a dataclass that the user gave.

    Left out are those that the program determines itself, such as a calibration (`found`), and those that a later
    version added (`added`) as long as they have their default: studies that an earlier version stored lack them.
    """
    return [
        field.name
        for field in dataclasses.fields(value)
        if "found" not in field.metadata
        and not ("added" in field.metadata and getattr(value, field.name) == field.default)
    ]


def _name(value: object) -> str:
    """Return the qualified name of a function or class, without its module."""
    return str(getattr(_class_or_function(value), "__qualname__", ""))


def _module(value: object) -> str:
    """Return the last part of the name of the module that defines a function or class."""
    return str(getattr(_class_or_function(value), "__module__", "")).rpartition(".")[2]


def _class_or_function(value: object) -> object:
    """Return a class or function itself, and the class of any other object."""
    return value if hasattr(value, "__qualname__") else type(value)


def _digest(tensor: Tensor) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of the bytes of a tensor; of none where it has no values yet."""
    if is_lazy(tensor):
        return _LAZY
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)  # numpy has no bfloat16
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:12]


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the weights and the structure of a network, without its wrappers."""
    model = unwrapped(model)
    digest = hashlib.sha256(str(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{_digest(tensor)}".encode())
    return digest.hexdigest()[:12]
