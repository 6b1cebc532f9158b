"""A study's definition in plain words, so that a stored one can be compared with the one in the file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import DataclassInstance

    from search.spec import StudySpec

# They change how long a study runs and what comes after it, not what a trial gives; and only `confirm` reads test.
LEFT_OUT = ("budget", "confirmation", "runtime", "splits.test")


def define(spec: StudySpec) -> dict[str, str]:
    """Return every setting that a trial's result depends on, by its path in the spec."""
    return {
        path: value
        for field in dataclasses.fields(spec)
        for path, value in _walk(field.name, getattr(spec, field.name))
    }


def define_value(value: object) -> dict[str, str]:
    """Return the settings of one part of a study, such as a recipe."""
    return dict(_walk(type(value).__name__, value))


def differences(stored: dict[str, str], now: dict[str, str]) -> list[str]:
    """Word every setting that differs."""
    return [
        f"{path} was {stored.get(path, 'absent')}, is {now.get(path, 'absent')}"
        for path in dict.fromkeys((*stored, *now))
        if stored.get(path) != now.get(path)
    ]


def _walk(path: str, value: object) -> Iterator[tuple[str, str]]:
    if path in LEFT_OUT:
        return
    if isinstance(value, nn.Module):
        yield path, f"{type(value).__name__} {fingerprint(value)}"
    elif isinstance(value, Tensor):
        yield path, f"{tuple(value.shape)} {_digest(value)}"
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.repr:  # type: ignore[attr-defined]
        yield path, type(value).__name__
        for name in _chosen(value):
            yield from _walk(f"{path}.{name}", getattr(value, name))
    elif isinstance(value, tuple) and not all(isinstance(item, int | float | str) for item in value):
        for index, item in enumerate(value):
            yield from _walk(f"{path}[{index}]", item)
    elif isinstance(value, functools.partial):
        yield path, f"{_named(value.func)}{value.args}{sorted(value.keywords.items())}"
    elif callable(value) and not dataclasses.is_dataclass(value):
        yield path, _named(value)
    else:
        yield path, repr(value)


def _chosen(value: DataclassInstance) -> list[str]:
    """Return the fields of a dataclass but for those that were found out since."""
    return [field.name for field in dataclasses.fields(value) if "found" not in field.metadata]


def _named(value: object) -> str:
    """Name a function or class by the last part of its module: a study's file may be named by path or by module."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(kind, '__module__', '').rpartition('.')[2]}.{getattr(kind, '__qualname__', '')}"


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:12]


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the weights and the structure of a network."""
    digest = hashlib.sha256(str(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{_digest(tensor)}".encode())
    return digest.hexdigest()[:12]
