"""Follow every channel of a network from the layer that computes it to the layers that read it.

In one forward pass, each tensor has labels, one for each element. Operations that only move data are applied to the
labels as well. Operations that combine elements make their labels equal. Layers give new labels to their outputs.
Chunks, shuffles, concatenations, padded shortcuts and squeeze-excitation need no rules of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from spaces.dependency.combining import CONSTANT_OR_INPUT
from spaces.dependency.label_sets import LabelSets, drop_repeats
from spaces.dependency.operator_calls import Call, CallCounter
from spaces.dependency.operator_rules import rule
from spaces.dependency.product_rules import matrix_products
from spaces.network.layers import CHANNEL_NORMS, CONVOLUTIONS, EMBEDDINGS, TRANSPOSED, depthwise, has_plain_weight
from spaces.network.recurrent import ZeroState
from spaces.network.tensors import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spaces.dependency.label_sets import ReshapeKey

# layers through which channels are not followed: their inputs and outputs are not cut
OPAQUE_LAYERS = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
KERNEL_LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)  # layers with input and output channels
LARGEST_BUFFER = 2**22  # elements that get labels; larger tables, such as masks of long sequences, hold no channels
FOLLOWED_LAYERS = (*KERNEL_LAYERS, *CHANNEL_NORMS, *EMBEDDINGS, nn.GroupNorm, nn.PReLU)


class LabelPropagation(TorchDispatchMode):
    """A dispatch mode under which a network is run, to find which channels belong together.

    Parameters
    ----------
    model
        A copy that is not used for anything else.
    units
        Which dimension of a division into parts holds what can be removed (`LabelSets.units`).

    Attributes
    ----------
    sets
        The labels of all layers, and which of them are equal.
    idle
        Names of the modules with channels that have not run yet.
    products
        Matrix products outside of layers: for each product, the labels along each dimension.
    """

    def __init__(self, model: nn.Module, units: Mapping[ReshapeKey, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sets = LabelSets(units)
        self.idle: set[str] = set()
        self.products: list[list[Tensor]] = []
        self._labels: Any = WeakIdKeyDictionary()
        self._depth = 0  # of nested layers; operations inside a layer are not followed
        self._layer_norms: list[tuple[str, nn.LayerNorm]] = []
        self._counter = CallCounter()
        self._parameters = {id(p): name for name, p in model.named_parameters()}
        self._layer_parameters: set[int] = set()
        self._norm_parameters: dict[int, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, ZeroState):
                module.register_forward_hook(self._leave_zero_state)
                continue
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(self._enter_layer_norm(name, module))
                module.register_forward_hook(self._leave_layer_norm, always_call=True)
                if len(module.normalized_shape) == 1:  # a class of one's own may compute the norm itself
                    self._norm_parameters |= {id(p): name for p in module.parameters(recurse=False)}
            elif isinstance(module, (*FOLLOWED_LAYERS, *OPAQUE_LAYERS)):
                module.register_forward_pre_hook(self._enter_layer)
                module.register_forward_hook(self._leave_layer(name), always_call=True)
            else:
                continue
            self.idle.add(name)
            self._layer_parameters |= {id(p) for p in module.parameters()}
        self._buffers = {  # tables of numbers that the network adds or multiplies, as parameters
            id(buffer): name
            for owner, module in model.named_modules()
            if owner not in self.idle
            for name, buffer in module.named_buffers(owner, recurse=False)
            if buffer.is_floating_point() and buffer.dim() and buffer.numel() <= LARGEST_BUFFER
        }

    @property
    def unused_parameters(self) -> list[str]:
        """The bare parameters that nothing has read yet."""
        held = self._layer_parameters | set(self._norm_parameters)
        bare = [name for key, name in self._parameters.items() if key not in held and "parametrizations" not in name]
        return [name for name in bare if (name, "") not in self.sets.places]

    def labels_of(self, tensor: Tensor) -> Tensor:
        """Return the labels of a tensor, with its shape."""
        if tensor in self._labels:
            return self._labels[tensor]  # type: ignore[no-any-return]
        name = self._parameters.get(id(tensor), self._buffers.get(id(tensor)))
        norm = self._norm_parameters.get(id(tensor))
        if norm is not None:
            return self.sets.of_place((norm, "out"), tensor.shape)
        if name is None or not tensor.dim():
            return torch.zeros((), dtype=torch.long).expand(tensor.shape)
        if id(tensor) not in self._layer_parameters:
            return self.sets.of_place((name, ""), tensor.shape)
        label = self.sets.fresh((1,))
        self.sets.fix(label, f"they are combined with the parameter {name!r} outside of its layer")
        self.sets.read_outside[int(label)] = name
        self._labels[tensor] = label.expand(tensor.shape)
        return self._labels[tensor]  # type: ignore[no-any-return]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run the operation, and compute the labels of its results."""
        output = function(*args, **(kwargs or {}))
        _, number = self._counter.next(function)
        if not self._depth:
            call = Call(function, args, kwargs or {}, tensors(output), self.labels_of, number)
            self.products += matrix_products(call)
            if call.results and any(bool(drop_repeats(labels).any()) for labels in call.labels if labels.numel()):
                found = self._layer_norm(call) if self._is_layer_norm(call) else rule(function)(self.sets, call)
                for result, labels in zip(call.results, found, strict=False):  # further results, statistics, have none
                    self._labels[result] = labels
        return output

    def _enter_layer(self, *_: object) -> None:
        self._depth += 1

    def _leave_layer(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            if self._depth == 1 and output is not None:  # None: the layer failed
                self.idle.discard(name)
                if isinstance(module, OPAQUE_LAYERS) or (
                    isinstance(module, KERNEL_LAYERS) and not has_plain_weight(module)
                ):
                    self._fix_around(f"{name!r} ({type(module).__name__}) cannot be cut", inputs, output)
                elif isinstance(module, EMBEDDINGS):
                    self._label_embedding(name, module, output)
                elif isinstance(output, Tensor):
                    self._label_output(name, module, self.labels_of(inputs[0]), output)
            self._depth -= 1

        return note

    def _leave_zero_state(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        """Let zeros have channels of their own, which are those of the layer that reads them."""
        if not self._depth:
            self._labels[output] = self.sets.fresh(output.shape[-1:]).expand(output.shape)

    def _fix_around(self, reason: str, inputs: tuple[Any, ...], output: object) -> None:
        for tensor in tensors(inputs):
            self.sets.fix(self.labels_of(tensor), reason)
        for tensor in tensors(output):
            labels = self.sets.fresh((1,))
            self.sets.fix(labels, reason)
            self._labels[tensor] = labels.expand(tensor.shape)

    def _label_embedding(self, name: str, module: nn.Module, output: Any) -> None:  # noqa: ANN401
        labels = self.sets.of_place((name, "out"), (output.shape[-1],))
        if getattr(module, "max_norm", None) is not None or not has_plain_weight(module):
            self.sets.fix(labels, f"{name!r} (Embedding) changes its weights in every forward pass")
        self._labels[output] = labels.expand(output.shape)

    def _label_output(self, name: str, module: nn.Module, input_labels: Tensor, output: Tensor) -> None:
        channel = channel_dimension(module, input_labels.dim())
        others = [dimension for dimension in range(input_labels.dim()) if dimension != channel]
        read = self.sets.equalize(input_labels, others, f"{name!r} reads them as positions of one channel").reshape(-1)
        output_labels = self._join_with_own(name, module, read)
        shape = [-1 if dimension == channel else 1 for dimension in range(output.dim())]
        self._labels[output] = output_labels.reshape(shape).expand(output.shape)

    def _join_with_own(self, name: str, module: nn.Module, read: Tensor) -> Tensor:
        """Join the labels that a layer reads with its own; return those of its outputs, shape (channels,)."""
        sets = self.sets
        reason = f"{name!r} reads them together with {CONSTANT_OR_INPUT}"
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return read
        if not isinstance(module, KERNEL_LAYERS) or depthwise(module):
            own = sets.of_place((name, "out"), read.shape)
            sets.join(own, read, reason)
            if isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels:
                sets.equalize(own.reshape(module.num_groups, -1), (0,), f"the groups of {name!r} must keep equal sizes")
            return own
        own = sets.of_place((name, "in"), read.shape)
        sets.join(own, read, reason)
        weight = module.get_parameter("weight")
        groups = 1 if isinstance(module, nn.Linear) else module.groups
        outputs = weight.shape[1] * groups if isinstance(module, TRANSPOSED) else weight.shape[0]
        several = groups > 1 and groups == len(own) and not isinstance(module, TRANSPOSED)
        if several and bool((read > 0).all()):  # each channel goes with all kernels that read it
            return sets.places.setdefault((name, "out"), own.repeat_interleave(outputs // groups))
        out = sets.of_place((name, "out"), (outputs,))
        if groups > 1:
            for side in (own, out):
                sets.equalize(side.reshape(groups, -1), (0,), f"the groups of {name!r} must keep equal sizes")
        return out

    def _enter_layer_norm(self, name: str, module: nn.LayerNorm) -> Callable[..., None]:
        def note(*_: object) -> None:
            self.idle.discard(name)
            self._layer_norms.append((name, module))

        return note

    def _leave_layer_norm(self, *_: object) -> None:
        self._layer_norms.pop()

    def _is_layer_norm(self, call: Call) -> bool:
        """Whether this is the operation of a LayerNorm; its class may move the channels before and after it."""
        return call.name == "native_layer_norm" and bool(self._layer_norms)

    def _layer_norm(self, call: Call) -> list[Tensor]:
        (name, module), input_labels = self._layer_norms[-1], call.labels[0]
        if len(module.normalized_shape) > 1:
            self.sets.fix(input_labels, f"{name!r} (LayerNorm) has a weight for every position")
            return []
        read = self.sets.equalize(
            input_labels, range(input_labels.dim() - 1), f"{name!r} reads them as positions of one channel"
        )
        return [self._join_with_own(name, module, read.reshape(-1)).expand(input_labels.shape)]


def channel_dimension(module: nn.Module, dimensions: int) -> int:
    """Return the dimension of the input of a layer that holds the channels."""
    if isinstance(module, nn.Linear):
        return dimensions - 1
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return dimensions - len(module.kernel_size) - 1  # there may be no batch dimension
    if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
        spatial = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
        return dimensions - next(n for kind, n in spatial.items() if isinstance(module, kind)) - 1
    return min(1, dimensions - 1)
