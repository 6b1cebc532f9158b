"""Compare the answers of an exported file with those of its network, batch by batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from objectives.accuracy import has_classes
from objectives.layers import FLOAT_BITS, LowPrecision, inputs_of_file
from objectives.trees import leaves, run, shape_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from objectives import Data
    from objectives.trees import Tree

COMPARED = 8  # inputs on which a file is compared with its network before a search (chosen)
ROUNDED_STEPS = 255  # steps between the smallest and the largest value of a tensor that is rounded to 8 bits
ROUNDING_FACTOR = 4  # times the noise of 8-bit rounding that a file may have, as it rounds elsewhere too (chosen)
FLOAT_ERROR = 0.01  # error of a file without rounded inputs, relative to the standard deviation of the outputs (chosen)
SMALLEST_NOISE = 1e-30
LAST_BITS = 2.0**-23  # relative change of a result: the last bit of a 32-bit float


class Comparison:
    """What is counted of the answers to all examples: equal classes, or the noise of each output tensor.

    Parameters
    ----------
    model
        The network in evaluation mode, whose rounding tells how much noise its file may have.
    of_classes
        Whether the largest output of an example is its class, if the labels are integers; those of embeddings are too.
    coded
        The network with codes at its ends, in torch, if the file has them; None otherwise.
    """

    def __init__(self, model: nn.Module, *, of_classes: bool = True, coded: nn.Module | None = None) -> None:
        self._of_classes = of_classes
        inner = any(isinstance(x, LowPrecision) and x.activation_bits < FLOAT_BITS for x in model.modules())
        self._rounds = inner or coded is not None
        self._computed = model if coded is None else coded  # with the rounding that is asked for
        self._rounded = Rounded(self._computed) if inner else self._computed
        self._model = model
        self._equal = self._counted = self._right_in_torch = self._right_in_file = 0
        self._outputs: list[_Power] = []

    def add(self, inputs: Tree, expected: Tree, actual: Tree, labels: Tree) -> None:
        """Count one batch.

        Raises
        ------
        ValueError
            If file and network return outputs of different shapes.
        """
        shapes = [[tuple(x.shape) for x in leaves(tree)] for tree in (expected, actual)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the exported file must return {shape_words(expected)}, as the network, but it returned "
                f"{shape_words(actual)}"
            )
        rounds = self._rounds
        if self._of_classes and has_classes(expected, labels):
            rounds = False  # classes are compared, not noise, so that what it may be is not needed
            own, file = expected.argmax(1), actual.argmax(1)
            self._equal += int((own == file).sum())
            self._right_in_torch += int((own == labels).sum())
            self._right_in_file += int((file == labels).sum())
            self._counted += own.numel()
        with torch.no_grad():
            rounded = leaves(run(self._rounded, inputs)) if rounds else leaves(expected)
        self._outputs = self._outputs or [_Power() for _ in rounded]
        for power, *tensors in zip(self._outputs, leaves(expected), leaves(actual), rounded, strict=True):
            power.add(*(tensor.double() for tensor in tensors))

    def record(self) -> dict[str, Any]:
        """Return what was counted: for classes top-1 and agreement in percent; the signal-to-noise ratio in dB.

        The ratio is that of the worst output tensor; where answers are not classes, the file must reach
        `allowed_sqnr_db`.
        """
        worst = max(self._outputs, key=lambda power: power.noise / max(power.allowed, SMALLEST_NOISE))
        found: dict[str, Any] = {"sqnr_db": worst.decibels(worst.noise)}
        if not self._counted:
            return found | {"agreement_percent": None, "allowed_sqnr_db": worst.decibels(worst.allowed)}
        shares = (self._right_in_torch, self._right_in_file, self._equal)
        names = ("top1_torch", "top1_file", "agreement_percent")
        return found | {name: 100 * share / self._counted for name, share in zip(names, shares, strict=True)}

    def of_itself(self, examples: Data) -> dict[str, Any]:
        """Compare the classes of the network with its own where the results of operations differ in their last bits.

        Returns
        -------
        dict
            `own_agreement_percent` and `own_sqnr_db`; nothing for a network that rounds nothing.
        """
        if not self._rounds:
            return {}
        again, power, equal = _Within(ChangesLastBits(), self._computed), _Power(), 0
        for inputs, _ in examples.batches():
            with torch.no_grad():
                own, other = (leaves(run(one, inputs))[0] for one in (self._model, again))
            equal += int((own.argmax(1) == other.argmax(1)).sum())
            power.add(*(tensor.double() for tensor in (own, other, own)))
        return {
            "own_agreement_percent": 100 * equal / self._counted,
            "own_sqnr_db": power.decibels(power.noise),
        }


def compared(
    model: nn.Module, inputs: Tree, execute: Callable[[Tree], Tree], coded: nn.Module | None = None
) -> dict[str, Any] | None:
    """Return the noise of a file's answers to a few inputs; None if those of its network are not finite.

    Parameters
    ----------
    model, inputs
        The finished network on the CPU, and its inputs.
    execute
        Returns the answers of the file to inputs as the file takes them; not called if there is nothing to compare.
    coded
        As in `Comparison`.

    Returns
    -------
    dict
        As `Comparison.record` returns it, without classes.
    """
    with torch.no_grad():
        expected = run(model, inputs)
    if not all(bool(tensor.isfinite().all()) for tensor in leaves(expected)):
        return None
    comparison = Comparison(model, coded=coded)
    comparison.add(inputs, expected, execute(inputs_of_file(model, inputs)), None)
    return comparison.record()


class _Power:
    """The sums of squares of one output tensor over all examples: its values, their errors, and errors allowed."""

    def __init__(self) -> None:
        self.signal = self.noise = self.allowed = 0.0

    def add(self, expected: Tensor, actual: Tensor, rounded: Tensor) -> None:
        """Add one batch."""
        self.signal += float(expected.pow(2).sum())
        self.noise += float((expected - actual).pow(2).sum())
        of_floats = FLOAT_ERROR**2 * float(expected.var(correction=0)) * expected.numel()
        self.allowed += max(of_floats, ROUNDING_FACTOR * float((expected - rounded).pow(2).sum()))

    def decibels(self, noise: float) -> float:
        """Return the signal over a noise in dB."""
        return 10 * math.log10(max(self.signal, SMALLEST_NOISE) / max(noise, SMALLEST_NOISE))


class _ChangesResults(TorchFunctionMode):
    """Changes the result of every operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Return the changed result of a function."""
        result = func(*args, **(kwargs or {}))
        several = isinstance(result, Tensor) and result.is_floating_point() and result.numel() > 1
        return self._changed(result) if several else result

    def _changed(self, result: Tensor) -> Tensor:
        raise NotImplementedError


class RoundsEverything(_ChangesResults):
    """Rounds the result of every operation to 8 bits between its smallest and its largest value.

    This is the noise that integer kernels may add to a network that does not round its own sums and activations.
    """

    def _changed(self, result: Tensor) -> Tensor:
        low, high = result.min(), result.max()
        step = ((high - low) / ROUNDED_STEPS).clamp_min(torch.finfo(result.dtype).tiny)
        return ((result - low) / step).round() * step + low


class ChangesLastBits(_ChangesResults):
    """Changes the last bits of the result of every operation, as kernels that sum in another order do.

    This moves a few numbers over the border between two codes, which moves more in the next layer. So two computations
    of a deep network of integers differ as much as rounding does, whatever their kernels are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def _changed(self, result: Tensor) -> Tensor:
        return result * (1 + LAST_BITS * torch.randn(result.shape, generator=self._generator))


class _Within(nn.Module):
    """A network whose operations are changed."""

    def __init__(self, mode: TorchFunctionMode, model: nn.Module) -> None:
        super().__init__()
        self.model, self._mode = model, mode

    def forward(self, *inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the network takes
        """Return the outputs with the noise of the changes."""
        with self._mode:
            return self.model(*inputs, **named)


class Rounded(_Within):
    """A network that rounds the result of every operation to 8 bits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(RoundsEverything(), model)
