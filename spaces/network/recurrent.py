"""Recurrent layers made of linear layers, in place of torch's own, whose weights no axis can see or replace.

Each direction of each layer has two linear layers: `input` reads the sequence, all steps in one call, and `hidden`
reads the hidden state, step by step. Both have one output for each gate of each hidden unit, in torch's order. Where
both still have a weight that one operator of torch can use, that operator runs the whole sequence: several times faster
than a loop, and an exporter sees it as one recurrent layer. Otherwise, as with a factorized `hidden`, a loop runs the
steps. An exported file contains this loop, or the steps one by one where the format has no loops.

Legend: `T` steps, `B` examples, `I` features, `H` hidden units, `G` gates, `P` features of the state: those of the
projection if there is one, else H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.utils._python_dispatch import _disable_current_modes

from spaces.network.layers import linear_of
from spaces.network.used_weights import Layer, factors_of, linear_in, unpacked, used_weight, whole_weight

State = tuple[Tensor, ...]  # the hidden state, and for an LSTM the cell state


class ZeroState(nn.Module):
    """The state before the first step: zeros, as many as the next layer reads.

    It is a module so that channels can be followed through it: its zeros are no constants of a fixed width.
    """

    def forward(self, like: Tensor, width: int) -> Tensor:
        """Return zeros of shape (B, width) for a tensor of shape (..., B, features)."""
        return like.new_zeros(like.shape[-2], width)


class Direction(nn.Module):
    """One direction of one recurrent layer.

    Parameters
    ----------
    kind
        `LSTM`, `GRU`, `RNN_TANH` or `RNN_RELU`, as torch calls them.
    weights
        The matrices of torch's layer, copied: (G*H, I), (G*H, P) and, for a projection, (P, H).
    biases
        Its two biases, shape (G*H,), or nothing.
    """

    def __init__(self, kind: str, weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.kind = kind
        bias_input, bias_hidden = biases or (None, None)
        self.input, self.hidden = linear_of(weights[0], bias_input), linear_of(weights[1], bias_hidden)
        self.projection = linear_of(weights[2], None) if len(weights) > 2 else None  # noqa: PLR2004
        self.zeros = ZeroState()
        self.loops, self.unfused, self.at_once = False, False, False  # see `objectives.layers.Repeating`

    @property
    def state_width(self) -> int:
        """The number of features of the state that are left."""
        return linear_in(self.hidden).in_features

    @property
    def units(self) -> int:
        """The number of hidden units that are left."""
        return self.state_width if self.projection is None else linear_in(self.projection).in_features

    def forward(self, x_TBI: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Return the hidden states of all steps, shape (T, B, P), and the last state."""
        start = self.start(x_TBI, state)
        weights = self._weights()
        if weights is not None:
            for factor in factors_of(self.input)[:-1]:
                x_TBI = factor(x_TBI)
            return _run(self.kind, x_TBI, start, weights)
        gates_TBG = self.input(x_TBI)
        if self.loops:
            return self._loop(gates_TBG, start)
        if self.at_once:
            states = self.step(gates_TBG, tuple(one.expand(len(x_TBI), *one.shape) for one in start))
            return states[0], tuple(one[-1] for one in states)
        outputs = []
        for gates in gates_TBG.unbind(0):
            start = self.step(gates, start)
            outputs.append(start[0])
        return torch.stack(outputs), start

    def _loop(self, gates_TBG: Tensor, start: State) -> tuple[Tensor, State]:
        """Run all steps in a loop that a graph can contain; weights are unpacked before it."""
        hidden, projection = unpacked(self.hidden), None if self.projection is None else unpacked(self.projection)

        def next_state(state: State, gates_BG: Tensor) -> tuple[State, Tensor]:
            state = _step(self.kind, gates_BG, state, hidden, projection)
            return state, state[0].clone()  # outputs of the loop must not be its states

        last, outputs = scan(next_state, start, gates_TBG)
        return outputs, last

    def start(self, like: Tensor, state: State | None) -> State:
        """Return the state before the first step.

        A given state of zeros is replaced by zeros, whose width may change, as is one of the width before hidden units
        were removed: nothing else than zeros passes the check of the groups there.
        """
        widths = (self.state_width, self.units) if self.kind == "LSTM" else (self.state_width,)
        given = (None,) * len(widths) if state is None else state
        return tuple(
            self.zeros(like, width) if one is None or _is_zero(one, width) else one
            for one, width in zip(given, widths, strict=True)
        )

    def step(self, gates_BG: Tensor, state: State) -> State:
        """Return the next state, given what `input` makes of the features of this step, shape (B, G*H)."""
        return _step(self.kind, gates_BG, state, self.hidden, self.projection)

    def _weights(self) -> list[Tensor] | None:
        """Return the parameters for torch's operator; None where it cannot run what the layers compute.

        Nor can it where hooks wait for the calls of the layers; and no runtime has an operator with a projection.
        """
        captured = torch.compiler.is_compiling()
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())  # noqa: SLF001
        # torch takes states of equal widths for a layer without a projection
        projected = self.projection is not None and (captured or self.units == self.state_width)
        if hooked or projected or self.unfused:
            return None
        last, merged = factors_of(self.input)[-1], self.loops or not captured
        repeated = [self.hidden] if self.projection is None else [self.hidden, self.projection]
        found = [used_weight(last), *(whole_weight(layer) if merged else used_weight(layer) for layer in repeated)]
        weights = [weight for weight in found if weight is not None]
        if len(weights) < len(found):
            return None
        biases = [bias for layer in (last, self.hidden) if (bias := linear_in(factors_of(layer)[-1]).bias) is not None]
        return [*weights[:2], *biases, *weights[2:]] if len(biases) != 1 else None


class Recurrent(nn.Module):
    """A recurrent layer, such as `nn.LSTM`, made of linear layers; it has the attributes of torch's that forwards read.

    Parameters
    ----------
    module
        Torch's module, whose weights and settings are copied.
    """

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.input_size, self.num_layers = module.mode, module.input_size, module.num_layers
        self.bias, self.batch_first, self.dropout = module.bias, module.batch_first, module.dropout
        self.bidirectional, self.proj_size = module.bidirectional, module.proj_size
        self.returns_states = True
        self.suffixes = [
            f"l{layer}{suffix}"
            for layer in range(module.num_layers)
            for suffix in (("", "_reverse") if module.bidirectional else ("",))
        ]
        for suffix in self.suffixes:
            names = ("weight_ih_", "weight_hh_", *(("weight_hr_",) if module.proj_size else ()))
            weights = tuple(module.get_parameter(f"{name}{suffix}") for name in names)
            biases = tuple(module.get_parameter(f"bias_{x}h_{suffix}") for x in "ih") if module.bias else ()
            self.add_module(suffix, Direction(module.mode, weights, biases))

    @property
    def hidden_size(self) -> int:
        """The number of hidden units that are left in the first layer."""
        return self._direction(self.suffixes[0]).units

    def flatten_parameters(self) -> None:
        """Do nothing: torch's layers order their weights in memory for cuDNN."""

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> tuple[Tensor, Tensor | State | None]:  # noqa: A002
        """Return what torch's layer does: the hidden states of the last layer at all steps, and the last states.

        Without `returns_states` the last states are None.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"the input must be a tensor, but got {type(input).__name__}; pad the sequences")
        batched = input.dim() == 3  # noqa: PLR2004 - steps, examples, features
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        given = (hx,) if isinstance(hx, Tensor) else hx
        given = given if given is None or batched else tuple(one.unsqueeze(1) for one in given)
        last: list[State] = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            if layer:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for at in range(layer * directions, (layer + 1) * directions):
                reverse = at % directions
                start = None if given is None else tuple(one[at] for one in given)
                run = self._direction(self.suffixes[at])
                output, state = run(x.flip(0) if reverse else x, start)
                outputs.append(output.flip(0) if reverse else output)
                last.append(state)
            x = torch.cat(outputs, -1) if self.bidirectional else outputs[0]
        x = x.transpose(0, 1) if batched and self.batch_first else x
        x = x if batched else x.squeeze(1)
        if not self.returns_states:
            return x, None
        states = tuple(torch.stack(one) for one in zip(*last, strict=True))
        states = states if batched else tuple(one.squeeze(1) for one in states)
        return x, states if self.mode == "LSTM" else states[0]

    def _direction(self, suffix: str) -> Direction:
        direction = self.get_submodule(suffix)
        assert isinstance(direction, Direction)
        return direction


class RecurrentCell(nn.Module):
    """One step of a recurrent layer, such as `nn.LSTMCell`, made of linear layers.

    Parameters
    ----------
    module
        Torch's module, whose weights and settings are copied.
    """

    def __init__(self, module: nn.RNNCellBase) -> None:
        super().__init__()
        kind = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}.get(type(module))
        kind = kind or ("RNN_TANH" if getattr(module, "nonlinearity", "tanh") == "tanh" else "RNN_RELU")
        biases = (module.bias_ih, module.bias_hh) if module.bias else ()
        self.input_size, self.bias = module.input_size, module.bias
        self.run = Direction(kind, (module.weight_ih, module.weight_hh), biases)

    @property
    def hidden_size(self) -> int:
        """The number of hidden units that are left."""
        return self.run.units

    def forward(self, input: Tensor, hx: Tensor | State | None = None) -> Tensor | State:  # noqa: A002
        """Return what torch's cell does: the next hidden state, for an LSTM with the next cell state."""
        batched = input.dim() == 2  # noqa: PLR2004 - examples, features
        x = input if batched else input.unsqueeze(0)
        given = (hx,) if isinstance(hx, Tensor) else hx
        given = given if given is None or batched else tuple(one.unsqueeze(0) for one in given)
        state = self.run.step(self.run.input(x), self.run.start(x, given))
        state = state if batched else tuple(one.squeeze(0) for one in state)
        return state if self.run.kind == "LSTM" else state[0]


def _step(kind: str, gates_BG: Tensor, state: State, hidden: Layer, projection: Layer | None) -> State:
    """Return the next state, given what `input` makes of the features of this step."""
    recurrent = hidden(state[0])
    if kind == "LSTM":
        enter, forget, cell, out = (gates_BG + recurrent).chunk(4, -1)
        c = forget.sigmoid() * state[1] + enter.sigmoid() * cell.tanh()
        h = out.sigmoid() * c.tanh()
        return (h if projection is None else projection(h)), c
    if kind == "GRU":
        (reset, update, new), (reset_h, update_h, new_h) = gates_BG.chunk(3, -1), recurrent.chunk(3, -1)
        candidate = (new + (reset + reset_h).sigmoid() * new_h).tanh()
        kept = (update + update_h).sigmoid()
        return (candidate + kept * (state[0] - candidate),)
    total = gates_BG + recurrent
    return (total.tanh() if kind == "RNN_TANH" else total.relu(),)


def _is_zero(state: Tensor, width: int) -> bool:
    """Whether a state is of another width, or of zeros; values cannot be read while a graph is captured."""
    if state.shape[-1] != width:
        return True
    unreadable = state.is_meta or torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()  # noqa: SLF001
    if unreadable:
        return False
    with _disable_current_modes():  # modes that follow channels must not see this
        return not bool(state.any())


def _run(kind: str, x_TBI: Tensor, start: State, weights: list[Tensor]) -> tuple[Tensor, State]:
    """Run all steps by one operator of torch."""
    settings = (len(weights) > 3, 1, 0.0, False, False, False)  # noqa: PLR2004
    operator = getattr(torch._VF, kind.lower())  # noqa: SLF001
    given: Any = tuple(one[None] for one in start) if kind == "LSTM" else start[0][None]
    outputs, *last = operator(x_TBI, given, weights, *settings)
    return outputs, tuple(one[0] for one in last)
