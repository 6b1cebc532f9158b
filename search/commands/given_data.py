"""The user's data, as `slimfront init` asks for them: a function that returns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from objectives import Examples, answers
from objectives.trees import leaves
from search.commands.given_network import called, named
from search.study.errors import UserError
from search.study.spec import Splits
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from search.commands.given_network import Given

SUCH_AS_DATA = "such as my_data.py:datasets"


@dataclass(frozen=True)
class Data:
    """The user's data.

    Attributes
    ----------
    splits
        The examples.
    imports
        What the study imports for them: the names by module.
    constants, lines
        The lines of the study: constants, and the body of its function `splits`.
    shown
        What they are, in words.
    """

    splits: Splits[Any]
    imports: Mapping[str, tuple[str, ...]]
    constants: tuple[str, ...]
    lines: tuple[str, ...]
    shown: str


def data_of_function(target: str, network: Given, folder: Path) -> Data:
    """Return the data of a function that is called without arguments; try the network on an example.

    Raises
    ------
    UserError
        If it does not return data for training, validation and test, or the network does not take them.
    """
    found = named(target, folder, "the function of the data", SUCH_AS_DATA)
    what = "training, validation and test data: three data sets, loaders, Examples, or pairs of tensors"
    given = called(found.found, f"{target}()", what)
    call = f"{found.name}()"
    if isinstance(given, Splits):
        splits, line = given, f"return {call}"
    else:
        parts = [*given] if isinstance(given, tuple | list) else []
        if len(parts) != 3:  # noqa: PLR2004 - of splits
            count = f"{len(parts)} of them" if parts else type(given).__name__
            raise UserError(f"{target} must return {what}; it returned {count}")
        make, code = _reading(parts)
        splits = attempt(lambda: Splits(*map(make, parts)), f"{target} cannot be read")
        line = f"return Splits({code.format(call)})"
    imports = {found.module: (found.name,)}
    words = f"the network fails on an example of {target}"
    answered = attempt(lambda: next(iter(answers(network.network, splits.validation.head(1)))), words)
    shapes = " and ".join(str(tuple(one.shape)) for one in leaves(splits.validation.example()))
    sizes = ", ".join(f"{len(getattr(splits, name)):,} {name}" for name in ("train", "validation", "test"))
    shown = f"{sizes} examples; one has the shape {shapes}, its outputs {tuple(leaves(answered[0])[0].shape)}"
    return Data(splits, imports, (), (line,), shown)


def _reading(parts: list[object]) -> tuple[Callable[[Any], Any], str]:
    """Return the function that makes examples of each part of the data, and its code for all of them."""
    if all(isinstance(part, Examples) for part in parts):
        return (lambda part: part), "*{}"
    if all(isinstance(part, tuple | list) and len(part) == 2 for part in parts):  # noqa: PLR2004
        return (lambda part: Examples(*part)), "*(Examples(*part) for part in {})"
    return Examples.of, "*map(Examples.of, {})"


def attempt(function: Callable[[], Any], words: str) -> Any:  # noqa: ANN401 - what the function returns
    """Return what a function returns.

    Raises
    ------
    UserError
        If it fails: the words and why.
    """
    try:
        return function()
    except Exception as error:
        raise UserError(f"{words}: {type(error).__name__}: {first_line(error)}") from error
