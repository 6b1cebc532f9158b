"""Follow every channel of a network from the kernel that makes it to those that read it.

One forward is run in which each tensor has a twin of labels, one an element: operations that only move data are done to
the labels as well, operations that combine elements make their labels equal, layers give new labels to what they make.
Chunks, shuffles, concatenations, padded shortcuts and squeeze-excitation need no rule of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spaces.dependency.label_sets import LabelSets, thin
from spaces.dependency.operator_calls import Call
from spaces.dependency.operator_rules import OUTSIDE, multiplied, rule
from spaces.network.layers import CONVOLUTIONS, NORMS, TRANSPOSED, depthwise, has_plain_weight
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag, nn.Bilinear)
KERNELS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
LAYERS = (*KERNELS, *NORMS, nn.GroupNorm, nn.PReLU)


class Follow(TorchDispatchMode):
    """Run a network under this mode, and the ledger tells which channels belong together.

    Parameters
    ----------
    model
        A copy that is not used for anything else.

    Attributes
    ----------
    ledger
        What was found out.
    idle
        Names of the modules with channels that have not run so far.
    products
        Matrix products outside of layers: for each of its dimensions the labels along it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sets = LabelSets()
        self.idle: set[str] = set()
        self.products: list[list[Tensor]] = []
        self._twins: Any = WeakIdKeyDictionary()
        self._inside = 0  # layers: what goes on in them is theirs
        self._norms: list[tuple[str, nn.LayerNorm]] = []
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._owned: set[int] = set()
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(self._open(name, module))
                module.register_forward_hook(self._close, always_call=True)
            elif isinstance(module, (*LAYERS, *OPAQUE)):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave(name), always_call=True)
            else:
                continue
            self.idle.add(name)
            self._owned |= {id(p) for p in module.parameters()}

    def of(self, tensor: Tensor) -> Tensor:
        """Return the labels of a tensor, of its shape."""
        if tensor in self._twins:
            return self._twins[tensor]  # type: ignore[no-any-return]
        name = self._parameters.get(id(tensor))
        if name is None or not tensor.dim():
            return torch.zeros((), dtype=torch.long).expand(tensor.shape)
        if id(tensor) not in self._owned:
            return self.sets.new((name, ""), tensor.shape)
        label = self.sets.fresh((1,))
        self.sets.fix(label, f"they meet the parameter {name!r} outside of its layer")
        self._twins[tensor] = label.expand(tensor.shape)
        return self._twins[tensor]  # type: ignore[no-any-return]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Do the operation, and what it means for the labels."""
        output = function(*args, **(kwargs or {}))
        if not self._inside:
            call = Call(function, args, kwargs or {}, tensors(output), self.of)
            self.products += multiplied(call)
            if call.results and any(bool(thin(labels).any()) for labels in call.labels if labels.numel()):
                made = self._layer_norm(call) if self._normalizes(call) else rule(function)(self.sets, call)
                for result, labels in zip(call.results, made, strict=False):  # statistics beside them have no channels
                    self._twins[result] = labels
        return output

    def _enter(self, *_: object) -> None:
        self._inside += 1

    def _leave(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            if self._inside == 1 and output is not None:  # None: it failed
                self.idle.discard(name)
                if isinstance(module, OPAQUE) or (isinstance(module, KERNELS) and not has_plain_weight(module)):
                    self._opaque(f"{name!r} ({type(module).__name__}) is not cut", inputs, output)
                elif isinstance(output, Tensor):
                    self._layer(name, module, self.of(inputs[0]), output)
            self._inside -= 1

        return note

    def _opaque(self, why: str, inputs: tuple[Any, ...], output: object) -> None:
        for tensor in tensors(inputs):
            self.sets.fix(self.of(tensor), why)
        for tensor in tensors(output):
            labels = self.sets.fresh((1,))
            self.sets.fix(labels, why)
            self._twins[tensor] = labels.expand(tensor.shape)

    def _layer(self, name: str, module: nn.Module, seen: Tensor, output: Tensor) -> None:
        channel = channel_dimension(module, seen.dim())
        others = [dimension for dimension in range(seen.dim()) if dimension != channel]
        read = self.sets.level(seen, others, f"{name!r} reads them as the positions of one").reshape(-1)
        made = self._through(name, module, read)
        shape = [-1 if dimension == channel else 1 for dimension in range(output.dim())]
        self._twins[output] = made.reshape(shape).expand(output.shape)

    def _through(self, name: str, module: nn.Module, read: Tensor) -> Tensor:
        """Join the labels that a layer reads with its own; return those of what it makes, shape (channels,)."""
        sets = self.sets
        beside = f"{name!r} reads them beside {OUTSIDE}"
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return read
        if not isinstance(module, KERNELS) or depthwise(module):
            own = sets.new((name, "out"), read.shape)
            sets.join(own, read, beside)
            if isinstance(module, nn.GroupNorm):
                sets.level(own.reshape(module.num_groups, -1), (0,), f"the groups of {name!r} must stay equal")
            return own
        own = sets.new((name, "in"), read.shape)
        sets.join(own, read, beside)
        weight = module.get_parameter("weight")
        groups = 1 if isinstance(module, nn.Linear) else module.groups
        outputs = weight.shape[1] * groups if isinstance(module, TRANSPOSED) else weight.shape[0]
        out = sets.new((name, "out"), (outputs,))
        if groups > 1:
            for side in (own, out):
                sets.level(side.reshape(groups, -1), (0,), f"the groups of {name!r} must stay equal")
        return out

    def _open(self, name: str, module: nn.LayerNorm) -> Callable[..., None]:
        def note(*_: object) -> None:
            self.idle.discard(name)
            self._norms.append((name, module))

        return note

    def _close(self, *_: object) -> None:
        self._norms.pop()

    def _normalizes(self, call: Call) -> bool:
        """Whether this is what a LayerNorm does, wherever its class has moved the channels before."""
        return call.name == "native_layer_norm" and bool(self._norms)

    def _layer_norm(self, call: Call) -> list[Tensor]:
        (name, module), seen = self._norms[-1], call.labels[0]
        if len(module.normalized_shape) > 1:
            self.sets.fix(seen, f"{name!r} (LayerNorm) has a weight for every position")
            return []
        read = self.sets.level(seen, range(seen.dim() - 1), f"{name!r} reads them as the positions of one")
        return [self._through(name, module, read.reshape(-1)).expand(seen.shape)]


def channel_dimension(module: nn.Module, dimensions: int) -> int:
    """Return which dimension of its input holds the channels of a layer."""
    if isinstance(module, nn.Linear):
        return dimensions - 1
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return dimensions - len(module.kernel_size) - 1  # without a batch they come first
    if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
        space = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
        return dimensions - next(n for kind, n in space.items() if isinstance(module, kind)) - 1
    return min(1, dimensions - 1)
