"""One call of a torch operation."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def name_of(function: Any) -> str:  # noqa: ANN401 - an operation has no public type
    """Return the name of an operation in ATen."""
    return str(function._schema.name.removeprefix("aten::"))  # noqa: SLF001


class CallCounter:
    """Numbers the calls of each operation, so that calls of two runs of a network can be compared."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def next(self, function: Any) -> tuple[str, int]:  # noqa: ANN401
        """Return the name of the operation and how many calls of it preceded this one."""
        name = name_of(function)
        self._counts[name] += 1
        return name, self._counts[name] - 1


@dataclass(frozen=True)
class Call:
    """One call of an operation, with its results.

    Attributes
    ----------
    function, args, kwargs
        The operation and its arguments.
    results
        The tensors that it returned.
    labels_of
        Returns the labels of a tensor.
    number
        How many calls of the same operation preceded it.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]
    labels_of: Callable[[Tensor], Tensor]
    number: int = 0

    @property
    def name(self) -> str:
        """The name of the operation in ATen; names of in-place operations end with an underscore."""
        return name_of(self.function)

    @property
    def reason(self) -> str:
        """Why channels that it mixes cannot be removed."""
        return f"the operation {self.name} mixes them"

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors((self.args, self.kwargs))

    @functools.cached_property
    def labels(self) -> list[Tensor]:
        """The labels of the tensors among the arguments."""
        return [self.labels_of(tensor) for tensor in self.tensors]

    def argument(self, name: str) -> Any:  # noqa: ANN401 - whatever the operation takes
        """Return the argument with this name, or its default."""
        for given, argument in itertools.zip_longest(self.args, self.function._schema.arguments):  # noqa: SLF001
            if argument.name == name:
                return self.kwargs.get(name, argument.default_value if given is None else given)
        return None
