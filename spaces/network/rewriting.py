"""Replace modules of a network by others that compute the same and show their layers."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from spaces.network.layers import count_holders, replace_module
from spaces.network.tensors import seeded_outputs, some

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spaces.network.tensors import Inputs

Found = TypeVar("Found")
REWRITING_TOLERANCE = 1e-4  # relative to the largest output; both compute the same sums, in another order


def modules_to_rewrite(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[list[str]]:
    """Return all names of each wanted module; a module has several where it is used in several places.

    Modules with hooks, or with a parameter that another module holds too, are left out.
    """
    holders = count_holders(model)
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if not wanted(module):
            continue
        hooked = any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())  # noqa: SLF001
        unshared = all(holders[id(parameter)] == 1 for parameter in module.parameters())
        if unshared and not hooked:
            names[id(module)].append(name)
    return list(names.values())


def rewritten(
    model: nn.Module, example: Inputs, names: Sequence[Sequence[str]], replace: Callable[[nn.Module, list[str]], None]
) -> nn.Module:
    """Return a network in which modules are replaced where that does not change its outputs.

    Parameters
    ----------
    model
        The network; it is not changed.
    example
        A batch of inputs on the device of the network, shape (B, ...); the outputs are compared on the first two.
    names
        All names of each module to replace.
    replace
        Replaces one module in place, given a container of the network and the names of the module in it.

    Returns
    -------
    nn.Module
        A new network, or `model` itself if nothing is replaced.
    """
    if not names:
        return model
    try:
        expected = outputs_in_eval(model, example)
    except Exception:  # noqa: BLE001 - `trace` runs the network again and raises an error with advice
        return model
    new = _replaced(model, names, replace)
    if _outputs_agree(new, example, expected):
        return new
    good = [aliases for aliases in names if _outputs_agree(_replaced(model, [aliases], replace), example, expected)]
    new = _replaced(model, good, replace)
    return new if good and _outputs_agree(new, example, expected) else model


def with_layers(
    model: nn.Module, example: Inputs, names: Sequence[Sequence[str]], layers: Mapping[str, nn.Module]
) -> nn.Module:
    """Return a network with copies of these layers, by the first name of what they replace; see `rewritten`."""

    def replace(root: nn.Module, aliases: list[str]) -> None:
        replace_module(root, aliases[0], copy.deepcopy(layers[aliases[0].removeprefix("0").removeprefix(".")]))

    return rewritten(model, example, [aliases for aliases in names if aliases[0] in layers], replace)


def seen_in_calls(
    model: nn.Module,
    example: Inputs,
    names: Sequence[Sequence[str]],
    look: Callable[[Any, tuple[Any, ...], Any], Found | None],
) -> dict[str, list[Found | None]]:
    """Run the network on the first two examples, and look at every call of some modules.

    Parameters
    ----------
    model, example
        See `rewritten`.
    names
        All names of each module.
    look
        Called with a module, its inputs and its output.

    Returns
    -------
    dict
        By the first name of a module, what `look` returned for each call, None where it raised an exception; empty if
        the network fails: `trace` runs it again and raises an error with advice.
    """
    found: dict[str, list[Found | None]] = {aliases[0]: [] for aliases in names}
    handles = []
    for name, calls in found.items():

        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any, calls: Any = calls) -> None:  # noqa: ANN401
            try:
                calls.append(look(module, inputs, output))
            except Exception:  # noqa: BLE001 - a module with an interface of its own
                calls.append(None)

        handles.append(model.get_submodule(name).register_forward_hook(note))
    try:
        outputs_in_eval(model, example)
    except Exception:  # noqa: BLE001 - whatever it is, it is raised again with advice
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return found


def outputs_in_eval(model: nn.Module, example: Inputs) -> list[Tensor]:
    """Return the output tensors of a copy in evaluation mode, on the first two examples; random numbers are fixed."""
    return seeded_outputs(copy.deepcopy(model).eval(), some(example, slice(2)))


def _replaced(
    model: nn.Module, names: Sequence[Sequence[str]], replace: Callable[[nn.Module, list[str]], None]
) -> nn.Module:
    root = nn.ModuleList([copy.deepcopy(model)])  # so that the network itself can be replaced by name
    for aliases in names:
        paths = [f"0.{name}" if name else "0" for name in aliases]
        old = root.get_submodule(paths[0])
        replace(root, paths)
        old.forward = _not_replaced  # called where the network also holds the module in a list of its own, say
    return root[0]


def _not_replaced(*_: object, **__: object) -> None:
    raise RuntimeError("the network calls a module that was replaced")


def _outputs_agree(model: nn.Module, example: Inputs, expected: Sequence[Tensor]) -> bool:
    try:
        got = outputs_in_eval(model, example)
    except Exception:  # noqa: BLE001 - for example, code that reads the weights by their old names
        return False
    return agree(got, expected)


def agree(got: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether outputs are the same but for their rounding."""
    return [y.shape for y in got] == [y.shape for y in expected] and all(
        float((ours.float() - theirs.float()).abs().max()) <= REWRITING_TOLERANCE * float(theirs.float().abs().max())
        for ours, theirs in zip(got, expected, strict=True)
        if theirs.numel()
    )
