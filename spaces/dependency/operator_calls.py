"""One operation of torch as it was called."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One operation as it was called, with what came out of it.

    Attributes
    ----------
    function, args, kwargs
        What was called with what.
    results
        The tensors that it returned.
    of
        Gives the labels of a tensor.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]
    of: Callable[[Tensor], Tensor]

    @property
    def name(self) -> str:
        """The operation's name in ATen; that of one that works in place ends in an underscore."""
        return str(self.function._schema.name.removeprefix("aten::"))  # noqa: SLF001

    @property
    def why(self) -> str:
        """What to say of channels that it mixes."""
        return f"the operation {self.name} mixes them"

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return tensors((self.args, self.kwargs))

    @functools.cached_property
    def labels(self) -> list[Tensor]:
        """The labels of the tensors among the arguments."""
        return [self.of(tensor) for tensor in self.tensors]

    def argument(self, name: str) -> Any:  # noqa: ANN401 - whatever the operation takes
        """Return the argument of that name, or its default."""
        for given, argument in itertools.zip_longest(self.args, self.function._schema.arguments):  # noqa: SLF001
            if argument.name == name:
                return self.kwargs.get(name, argument.default_value if given is None else given)
        return None
