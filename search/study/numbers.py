"""Check the settings of a study: their types, and that numbers are finite and in their range."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = {"search", "spaces", "objectives"}  # whose classes are checked; a class of the user's own checks itself
LARGEST_SEED = 2**32 - 1  # that all generators of random numbers take
MOST = 10**9  # of anything that a study counts (chosen); more is a slip, and may not fit into a tensor's size


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


# By annotation: whether a value fits, and what it must be.
FITTING: dict[str, tuple[Callable[[object], bool], str]] = {
    "int": (_is_whole, "a whole number (int)"),
    "float": (_is_finite, "a finite number (int or float)"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "str": (lambda value: isinstance(value, str), "a text"),
}
OPTIONAL = " | None"
# By annotation: what a value must have, and what it must be.
MEMBERS: dict[str, tuple[tuple[str, ...], str]] = {
    "nn.Module": (("state_dict", "named_modules"), "a network (torch.nn.Module), not its class"),
    "Splits[Any]": (("train", "validation", "test"), "Splits(train, validation, test)"),
    "Data": (("batches", "sample"), "examples, such as Examples(inputs, labels)"),
    "SomeData": (("batches", "sample"), "examples, such as Examples(inputs, labels)"),
    "Space": (("steps", "recovery"), "a Space(steps=..., recovery=...)"),
    "Axis": (("suggest", "uniform", "acts_on"), "an axis, such as PruneRatios()"),
    "RecoveryAxis": (("suggest", "usual"), "a recovery, such as Temperatures()"),
    "Objective": (("name", "direction", "is_cost", "__call__"), "an objective, such as SizeBytes()"),
    "Limit": (("objective", "excess"), "a Limit(objective, at_most=...)"),
    "Recipe": (("epochs", "batch_size"), "a Recipe(...)"),
    "Budget": (("trials", "minutes"), "a Budget(...)"),
    "Runtime": (("name", "export", "load"), "a runtime, such as OnnxRuntime()"),
    "HasPrecisions": (("precisions",), "a runtime, such as OnnxRuntime()"),
    "Importance": (("order",), "an importance, such as SecondOrder()"),
    "Decomposition": (("factors", "split"), "a decomposition, such as Tucker2()"),
    "Grid": (("levels", "entries"), "a grid, such as Uniform()"),
    "LossOfTask": (("__call__",), "a function of outputs and labels"),
}
FUNCTION = "a function, or another object that can be called"


def check_settings(part: object) -> None:
    """Check every setting of a study, or of a part of it, against its annotation.

    Settings that have their default are taken as they are, and so are those of classes that slimfront does not define.

    Raises
    ------
    ValueError
        If a setting is of another kind, or a number is not finite.
    """
    if isinstance(part, tuple):
        for item in part:
            check_settings(item)
    ours = type(part).__module__.partition(".")[0] in PACKAGES
    if not dataclasses.is_dataclass(part) or isinstance(part, type) or not ours:
        return
    for field in dataclasses.fields(part):
        value = getattr(part, field.name, None)
        if field.init and value is not field.default:
            _check(type(part).__name__, field.name, _words_of(field.type), value)
        check_settings(value)


def check_range(name: str, value: float | None, least: float, most: float = MOST) -> None:
    """Check that a number, if it is given, is in a range.

    Raises
    ------
    ValueError
        If it is not.
    """
    if value is not None and not least <= value <= most:
        raise ValueError(f"{name} must be from {least:,} to {most:,}, but got {value}")


def check_positive(name: str, value: float | None, most: float = MOST) -> None:
    """Check that a number, if it is given, is above zero, and not larger than anything that could be meant.

    Raises
    ------
    ValueError
        If it is not.
    """
    if value is not None and not 0 < value <= most:
        rule = "positive" if value <= 0 else f"at most {most:,}"
        raise ValueError(f"{name} must be {rule}, but got {value}")


def _words_of(annotation: object) -> str:
    """Return an annotation as it is written, whether or not its module postpones their evaluation."""
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _check(owner: str, name: str, annotation: str, value: object) -> None:
    """Check one value against an annotation such as `int`, `float | None` or `tuple[int, ...]`."""
    wanted = annotation.removesuffix(OPTIONAL)
    if wanted != annotation and value is None:
        return
    each = wanted.removeprefix("tuple[").removesuffix(", ...]")
    rule = _rule(each)
    if rule is None:
        return
    fits, words = rule
    if each == wanted:
        if not fits(value):
            raise ValueError(f"{name} of {owner} must be {words}, but got {_shown(value)}")
    elif not isinstance(value, tuple):
        raise ValueError(f"{name} of {owner} must be a tuple, such as (value,), but got {_shown(value)}")
    else:
        for item in value:
            if not fits(item):
                raise ValueError(f"each value in {name} of {owner} must be {words}, but got {_shown(item)}")


def _rule(annotation: str) -> tuple[Callable[[object], bool], str] | None:
    """Return whether a value fits an annotation, and what it must be; None if anything may."""
    if annotation in MEMBERS:
        members, words = MEMBERS[annotation]
        return lambda value: _has(value, members), words
    if annotation.startswith("Callable[") and "] | " not in annotation:
        return callable, FUNCTION
    return FITTING.get(annotation)


def _has(value: object, members: tuple[str, ...]) -> bool:
    """Return whether a value has these members; a class has those of its objects, but is none of them."""
    if isinstance(value, type):
        return False
    own = getattr(value, "__dict__", {})
    return all(callable(value) if name == "__call__" else hasattr(type(value), name) or name in own for name in members)


def _shown(value: object) -> str:
    """Return a value with its type where the value alone does not tell it: `nan`, `'3' (str)`."""
    return repr(value) if isinstance(value, float) else f"{value!r:.80} ({type(value).__name__})"
