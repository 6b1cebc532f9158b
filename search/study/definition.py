"""A study's definition in plain words, so that a stored one can be compared with the one in the file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import DataclassInstance

    from search.study.spec import StudySpec

# They change how long a study runs and what comes after it, not what a trial gives; and only `confirm` reads test.
LEFT_OUT = ("budget", "confirmation", "runtime", "splits.test")
MODULE = re.compile(r"[A-Za-z_]\w*\.(?=[A-Za-z_])")  # before a name, in definitions that version 0.1 stored


def define(spec: StudySpec) -> dict[str, str]:
    """Return every setting that a trial's result depends on, by its path in the spec.

    Classes and functions are named without their module, so that moving one to another file changes no definition.
    """
    return {
        path: value
        for field in dataclasses.fields(spec)
        for path, value in _walk(field.name, getattr(spec, field.name), _named)
    }


def define_value(value: object) -> dict[str, str]:
    """Return the settings of one part of a study, such as a recipe."""
    return dict(_walk(type(value).__name__, value, _named))


def define_value_with_modules(value: object) -> dict[str, str]:
    """Return the same as version 0.1 did, which named classes with the last part of their module."""
    return dict(_walk(type(value).__name__, value, lambda kind: f"{_module(kind)}.{_named(kind)}"))


def differences(stored: dict[str, str], now: dict[str, str]) -> list[str]:
    """Word every setting that differs."""
    return [
        f"{path} was {stored.get(path, 'absent')}, is {now.get(path, 'absent')}"
        for path in dict.fromkeys((*stored, *now))
        if path not in stored or path not in now or not _same(stored[path], now[path])
    ]


def _same(stored: str, now: str) -> bool:
    return now in {stored, MODULE.sub("", stored, count=1)}


def _walk(path: str, value: object, name: Callable[[object], str]) -> Iterator[tuple[str, str]]:
    if path in LEFT_OUT:
        return
    if isinstance(value, nn.Module):
        yield path, f"{type(value).__name__} {fingerprint(value)}"
    elif isinstance(value, Tensor):
        yield path, f"{tuple(value.shape)} {_digest(value)}"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.repr:  # type: ignore[attr-defined]
        yield path, type(value).__name__
        for field in _chosen(value):
            yield from _walk(f"{path}.{field}", getattr(value, field), name)
    elif isinstance(value, tuple) and not all(isinstance(item, int | float | str) for item in value):
        for index, item in enumerate(value):
            yield from _walk(f"{path}[{index}]", item, name)
    elif isinstance(value, functools.partial):
        yield path, f"{name(value.func)}{value.args}{sorted(value.keywords.items())}"
    elif callable(value) and not dataclasses.is_dataclass(value):
        yield path, name(value)
    else:
        yield path, repr(value)


def _chosen(value: DataclassInstance) -> list[str]:
    """Return the fields of a dataclass but for those that were found out since."""
    return [field.name for field in dataclasses.fields(value) if "found" not in field.metadata]


def _named(value: object) -> str:
    """Name a function or class, not where it lives."""
    return str(getattr(_kind(value), "__qualname__", ""))


def _module(value: object) -> str:
    return str(getattr(_kind(value), "__module__", "")).rpartition(".")[2]


def _kind(value: object) -> object:
    return value if hasattr(value, "__qualname__") else type(value)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:12]


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the weights and the structure of a network."""
    digest = hashlib.sha256(str(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{_digest(tensor)}".encode())
    return digest.hexdigest()[:12]
