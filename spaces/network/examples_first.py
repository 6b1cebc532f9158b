"""Check that the first dimension of all inputs counts examples: data are split, traced and measured along it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from spaces.network.layers import BATCH_NORMS
from spaces.network.messages import first_line, listed
from spaces.network.tensors import run, seeded_outputs, some, tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spaces.network.tensors import Inputs

BATCH_TOLERANCE = 1e-3  # relative to the largest output; only the rounding may differ between batches
EXAMPLES_FIRST = "let the first dimension of every input count examples, as with batch_first=True"


def ensure_batches(model: nn.Module, inputs: Inputs, error: Exception) -> None:
    """Check whether a network that fails on a batch runs on one example.

    Raises
    ------
    ValueError
        If it does.
    """
    try:
        seeded_outputs(model, some(inputs, slice(1)))
    except Exception:  # noqa: BLE001 - the network fails for another reason
        return
    raise ValueError(
        "the network must accept several examples at once, as training does, but its forward only runs on one: "
        f"{first_line(error)}; keep the first dimension free, as in x.reshape(len(x), -1)"
    ) from error


def mixing_note(model: nn.Module, inputs: Inputs) -> str:
    """Return a sentence if the outputs for an example depend on the others in its batch; else an empty one.

    Parameters
    ----------
    model
        A network in evaluation mode; it is not changed.
    inputs
        Two examples.

    Raises
    ------
    ValueError
        If they do because the first dimension is the time of a sequence.
    """
    together = seeded_outputs(model, inputs)
    try:
        alone = [seeded_outputs(model, some(inputs, slice(number, number + 1))) for number in range(2)]
    except Exception:  # noqa: BLE001 - that it does not run on one example shows when it is traced
        return ""
    if any(len(one) != len(together) for one in alone):
        raise ValueError(
            f"the number of outputs must not depend on the inputs, but two examples give {len(together)} tensors and "
            f"one gives {len(alone[0])}; {EXAMPLES_FIRST}"
        )
    sequences = [name for name, module in model.named_modules() if getattr(module, "batch_first", True) is False]
    if not any(_mixed(whole, [one[number] for one in alone]) for number, whole in enumerate(together)):
        return ""
    if _draws_numbers(model, inputs) or _normalizes_batches(model):
        return ""
    if sequences:
        raise ValueError(
            f"the first dimension of an input must count examples, but {listed(sequences)} takes it for the steps of a "
            f"sequence; {EXAMPLES_FIRST}, or transpose them in the forward pass"
        )
    return (
        "the outputs for an example depend on the other examples of its batch, so all that is measured depends on the "
        f"order of the examples; if the first dimension is another one, {EXAMPLES_FIRST}"
    )


def _mixed(whole: Tensor, parts: list[Tensor]) -> bool:
    """Whether an output of two examples has other values than those for each of them."""
    if not whole.dim() or any(part.shape != (1, *whole.shape[1:]) for part in parts):
        return False  # not one row for each example
    return len(whole) == len(parts) and _differ([*whole.split(1)], parts)


def _differ(some_outputs: list[Tensor], others: list[Tensor]) -> bool:
    pairs = zip(some_outputs, others, strict=True)
    return any(
        one.is_floating_point()
        and bool((one - other).abs().max() > BATCH_TOLERANCE * other.abs().max().clamp_min(1e-6))
        for one, other in pairs
        if one.shape == other.shape and one.numel()
    )


def _draws_numbers(model: nn.Module, inputs: Inputs) -> bool:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return _differ(tensors(run(model, inputs)), tensors(run(model, inputs)))


def _normalizes_batches(model: nn.Module) -> bool:
    """Whether a BatchNorm computes its statistics anew for each batch, which is known of such networks."""
    return any(isinstance(module, BATCH_NORMS) and module.running_mean is None for module in model.modules())
