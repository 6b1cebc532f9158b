"""Quantization fulfils the contract of an axis, and its errors name what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

from objectives.runtimes import OnnxRuntime
from spaces import BitWidths, Depth, Factorize, KMeans, PowersOfTwo, PruneRatios, Quantize, Ranks, trace
from spaces.axes.quantized_layers import QuantizedLayer
from spaces.network.anatomy import Anatomy
from spaces.network.layer_runs import describe
from spaces.testing.axis_contract import AxisContract, values
from spaces.testing.networks import Mlp, Net, Plain, Separable, Sequence, example, run, teacher


class TestBitWidths(AxisContract):
    before, after = (PruneRatios(), Depth(), Ranks()), ()
    axis = BitWidths()


class TestBitWidthsOfARuntime(AxisContract):
    before, after = (PruneRatios(), Depth(), Ranks()), ()
    axis = BitWidths(runtime=OnnxRuntime())
    networks = (Plain, Separable)


class TestBitWidthsOfPowersOfTwo(AxisContract):
    before, after = (PruneRatios(), Depth(), Ranks()), ()
    axis = BitWidths(grid=PowersOfTwo())
    networks = (Plain, Sequence)


class TestBitWidthsOfKMeans(AxisContract):
    before, after = (PruneRatios(), Depth(), Ranks()), ()
    axis = BitWidths(grid=KMeans(), weights=(2, 4), activations=(8,))
    networks = (Separable, Mlp)


def test_the_widths_of_a_factorized_layer_apply_to_its_factors() -> None:
    net = teacher(Plain)
    thinner = Factorize((("second", 0.25),)).apply(net, example(net))
    quantized = Quantize((("second", 4, 8),)).apply(thinner, example(net))
    for name in ("second.reduce", "second.expand"):
        part = quantized.get_submodule(name)
        assert isinstance(part, QuantizedLayer)
        assert (part.weight_bits, part.activation_bits) == (4, 8)


def test_weights_or_inputs_alone_may_be_quantized() -> None:
    net = teacher(Plain)
    quantized = Quantize((("first", 4, 32), ("second", 32, 4), ("head", 32, 32))).apply(net, example(net))
    assert isinstance(quantized.get_submodule("head"), nn.Linear)
    assert torch.equal(quantized.get_parameter("second.layer.weight"), net.get_parameter("second.weight"))


class Twice(Net):
    """Calls one layer on small and on large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return run(10 * x, self.conv) + run(0.1 * x, self.conv)


def test_inputs_are_calibrated_over_all_calls() -> None:
    net = Twice().eval()
    quantized = Quantize((("conv", 32, 8),)).apply(net, example(net))
    layer = quantized.get_submodule("conv")
    assert isinstance(layer, QuantizedLayer)
    assert 255 * layer.input_scale > 0.3 * 10 * (example(net).max() - example(net).min())


class Alias(Net):
    """Holds one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.other = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return run(x, self.one, self.other)


def test_a_layer_with_two_names_is_quantized_under_both() -> None:
    net = Alias().eval()
    anatomy = trace(net, example(net))
    assert list(BitWidths().acts_on(anatomy)) == ["one"]
    quantized = Quantize((("one", 2, 8),)).apply(net, example(net))
    assert isinstance(quantized.one, QuantizedLayer)
    assert quantized.other is quantized.one


def test_a_transposed_convolution_can_be_quantized_unless_it_is_grouped() -> None:
    layers = (describe("up", nn.ConvTranspose2d(4, 4, 2)), describe("grouped", nn.ConvTranspose2d(4, 4, 2, groups=2)))
    anatomy = Anatomy(layers, (), (), (), ())
    texts = BitWidths().acts_on(anatomy)
    assert texts["up"] == "weights 2/3/4/5/6/7/8, inputs 4/5/6/7/8, or 32"
    assert texts["grouped"] == "no: a transposed convolution of 2 groups cannot be quantized"
    assert set(BitWidths().uniform(anatomy, 1.0)) == {"weight_bits/up", "activation_bits/up"}


def test_words_and_choices_name_the_layers() -> None:
    quantize = Quantize((("first", 8, 32), ("second", 4, 8)))
    assert quantize.words() == "weights 8 bit first, 4 bit second; inputs 8 bit second"
    chosen = values(quantize.choices(Anatomy((), (), (), (), ())))
    assert chosen == {"weight bits": {"first": 8, "second": 4}, "input bits": {"first": 32, "second": 8}}


def test_only_restricts_the_parameters_and_is_named_as_the_reason() -> None:
    net = teacher(Plain)
    anatomy = trace(net, example(net))
    axis = BitWidths(only=("second",))
    assert set(axis.uniform(anatomy, 1.0)) == {"weight_bits/second", "activation_bits/second"}
    assert axis.acts_on(anatomy)["first"] == "no: first is not among only=('second',)"


def test_errors_name_wrong_layers_and_widths() -> None:
    net = teacher(Plain)
    with pytest.raises(ValueError, match="no layer is called 'frist'; the nearest are: first"):
        Quantize((("frist", 4, 4),)).apply(net, example(net))
    with pytest.raises(ValueError, match="no layer is called 'frist'"):
        BitWidths(only=("frist",)).uniform(trace(net, example(net)), 0.5)
    with pytest.raises(ValueError, match="weight bits must be from 2 to 8, or 32 for off, but got 9 for layer 'first'"):
        Quantize((("first", 9, 8),))
    with pytest.raises(ValueError, match="activation bits must be from 4 to 8, or 32 for off, but got 3 for BitWidths"):
        BitWidths(activations=(3,))
    with pytest.raises(ValueError, match="must each offer a width"):
        BitWidths(weights=())


@dataclass(frozen=True)
class Kernels:
    """A runtime that packs 4 and 8 bits, computes with 8-bit weights and inputs, and supports only convolutions."""

    pairs: tuple[tuple[int, int], ...] = ((4, 32), (8, 32), (8, 8))

    integers_only = False

    def precisions(self, kind: str, groups: int) -> tuple[tuple[int, int], ...]:
        """Return the pairs for a convolution, none for other layers."""
        return self.pairs if kind == "Conv2d" else ()


class Older:
    """A runtime of an earlier version."""

    def precisions(self, kind: str, groups: int) -> tuple[tuple[int, int], ...]:
        """Return no pairs."""
        return ()


def test_a_runtime_that_lacks_a_member_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the runtime of BitWidths must have integers_only, as .* but Older has not"):
        BitWidths(runtime=Older())  # type: ignore[arg-type]


def test_only_the_pairs_that_the_runtime_supports_are_offered() -> None:
    """Each layer has one parameter, from floating point to the narrowest weights; none if it has no pair."""
    anatomy = trace(teacher(Plain), example(teacher(Plain)))
    axis = BitWidths(runtime=Kernels())
    untouched = axis.uniform(anatomy, 0.0)
    assert untouched == {"precision/first": 0, "precision/second": 0}
    found = [axis.suggest(FixedTrial(untouched | {"precision/first": at}), anatomy).widths for at in range(4)]
    assert [widths[0] for widths in found] == [("first", 32, 32), ("first", 8, 32), ("first", 8, 8), ("first", 4, 32)]
    assert {widths[1:] for widths in found} == {(("second", 32, 32),)}
    texts = axis.acts_on(anatomy)
    assert texts["first"] == "weights 4/8, inputs 8, or 32"
    assert texts["head"] == "no: Kernels supports no width below 32 bits for Linear"


def test_a_pair_is_offered_only_if_both_the_runtime_and_the_axis_offer_it() -> None:
    anatomy = trace(teacher(Plain), example(teacher(Plain)))
    axis = BitWidths(weights=(4,), runtime=Kernels())
    assert axis.acts_on(anatomy)["first"] == "weights 4, or 32"
    assert BitWidths(weights=(2,), runtime=Kernels()).uniform(anatomy, 1.0) == {}
