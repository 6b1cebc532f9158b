"""The scale of attention: how much scores, the products of queries and keys, are multiplied or divided by a number."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

SCALE = 0.3  # of attention in trials; any number
# names of functions of torch, without the underscores of methods in place and of operators
PRODUCTS = frozenset({"matmul", "bmm", "mm", "einsum", "baddbmm"})
MULTIPLYING = frozenset({"mul", "multiply"})
DIVIDING = frozenset({"div", "divide", "true_divide", "truediv"})
ADDING = frozenset({"add", "sub", "cat", "stack"})
MOVING = frozenset({
    "transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "get", "view", "reshape", "flatten",
    "unflatten", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave", "contiguous", "clone",
    "to", "float", "type_as", "chunk", "split", "tensor_split", "unbind", "getitem", "narrow", "select", "gather",
    "index_select", "take_along_dim", "roll", "pad", "masked_fill", "dropout",
})  # fmt: skip
MAKING = frozenset({"new_tensor", "new_full", "new_ones"})  # of numbers, whatever the tensor holds


class FixedScale(TorchFunctionMode):
    """Let scores of attention have a scale that does not depend on the number of channels.

    It changes only how sharp attention is. Products of two tensors that are computed count as scores. A number by which
    they or their factors are multiplied or divided counts as their scale, also where it is in a tensor of one element.
    """

    def __init__(self) -> None:
        super().__init__()
        self._scores: Any = WeakIdKeyDictionary()
        self._factors: Any = WeakIdKeyDictionary()  # the numbers by which tensors were multiplied so far
        self._numbers: Any = WeakIdKeyDictionary()  # tensors of one element that depend on no other tensor
        self._weights: Any = WeakIdKeyDictionary()  # parameters that were moved or multiplied by a number

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Call the function, with the fixed scale if it has one."""
        given = dict(kwargs or {})
        name = getattr(function, "__name__", "").strip("_")
        if function is F.scaled_dot_product_attention:
            read = tensors((args[:2], given.get("query"), given.get("key")))
            return function(*args, **given | {"scale": SCALE / self._factor(read)})
        if name in PRODUCTS:
            return self._product(function, name, args, given)
        if name in MULTIPLYING | DIVIDING:
            return self._scaled(function, name, args, given)
        output = function(*args, **given)
        read = tensors(args[:1] if name in MOVING else (args, given))
        if name in ADDING | MOVING:
            factors = {self._factors.get(one) for one in read}
            self._note(read, output, factors.pop() if len(factors) == 1 else None)
        if isinstance(output, Tensor) and (name in MAKING or all(one in self._numbers for one in read)):
            self._numbers[output] = True
        return output

    def _product(self, function: Any, name: str, args: Any, given: dict[str, Any]) -> Any:  # noqa: ANN401
        """Multiply matrices; undo the scales of queries and keys, and use the fixed one instead."""
        read = tensors((args, given))
        read = read[1:] if name == "baddbmm" else read  # the first one is added
        if any(isinstance(one, nn.Parameter) for one in read):
            return function(*args, **given)
        fixed = not any(one in self._weights for one in read)
        scale = SCALE / self._factor(read)
        if fixed and name == "baddbmm":
            output = function(*args, **given | {"alpha": scale})
        else:
            output = function(*args, **given)
            if fixed and any(one in self._factors for one in read):
                output = output * scale
        self._scores[output] = True
        return output

    def _scaled(self, function: Any, name: str, args: Any, given: dict[str, Any]) -> Any:  # noqa: ANN401
        """Multiply or divide; scores have the fixed scale instead of a number, and other tensors note the number."""
        read = [one for one in args if isinstance(one, Tensor) and not self._is_number(one)]
        numbers = [one for one in args if self._is_number(one)]
        if len(read) != 1 or len(numbers) != 1 or (name in DIVIDING and args[1] is read[0]):
            output = function(*args, **given)
            self._note(read, output)
            if not read:
                self._numbers[output] = True
            return output
        if read[0] in self._scores:
            output = function(*(one if one is read[0] else SCALE for one in args), **given)
            self._note(read, output)
            return output
        number, factor = float(numbers[0]), self._factor(read)
        output = function(*args, **given)
        if number:
            self._note(read, output, factor / number if name in DIVIDING else factor * number)
        return output

    def _is_number(self, one: object) -> bool:
        if isinstance(one, Tensor):
            return one in self._numbers and one.dim() <= 1 and one.numel() == 1 and not one.is_complex()
        return isinstance(one, Real)

    def _factor(self, read: Sequence[Tensor]) -> float:
        return math.prod(float(self._factors.get(one, 1.0)) for one in read)

    def _note(self, read: Sequence[Tensor], output: object, factor: float | None = None) -> None:
        """Note of results whether they are scores or weights, and by what they were multiplied."""
        scores = any(one in self._scores for one in read)
        weights = bool(read) and all(isinstance(one, nn.Parameter) or one in self._weights for one in read)
        for result in tensors(output):
            if scores:
                self._scores[result] = True
            if weights:
                self._weights[result] = True
            self._factors.pop(result, None)  # an operation in place may have changed it
            if factor is not None:
                self._factors[result] = factor
