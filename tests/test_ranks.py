"""Factorization fulfils the contract of an axis, offers only ranks that save, and its errors name what is wrong."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from spaces import BitWidths, Factorize, Ranks, SpatialSvd, Svd, Tucker2, trace
from spaces.axes.ranks import saves
from spaces.costs.factors import shapes_of
from spaces.network.anatomy import Anatomy, Layer
from spaces.network.layer_runs import describe
from spaces.testing.axis_contract import AxisContract, step, values
from spaces.testing.networks import Grouped, Plain, Residual, Sequence, Wide, example, teacher


class TestRanks(AxisContract):
    after = (BitWidths(),)
    axis = Ranks()


class TestRanksBySvd(AxisContract):
    after = (BitWidths(),)
    axis = Ranks(decomposition=Svd(), lowest=0.2, step=0.1)
    networks = (Plain, Sequence)


class TestRanksBySpatialSvd(AxisContract):
    after = (BitWidths(),)
    axis = Ranks(decomposition=SpatialSvd())
    networks = (Plain, Residual)


class TestRanksByTucker2(AxisContract):
    after = (BitWidths(),)
    axis = Ranks(decomposition=Tucker2())
    networks = (Wide,)


@pytest.mark.parametrize("decomposition", [Svd(), SpatialSvd(), Tucker2()])
def test_ranks_that_save_nothing_are_not_offered(decomposition: Svd | SpatialSvd | Tucker2) -> None:
    net = teacher(Residual)
    axis = Ranks(decomposition=decomposition)
    for layer in trace(net, example(net)).layers:
        *fractions, last = axis.offered(layer)
        assert last == 1
        for eighth in range(1, 8):
            cheaper = decomposition.factors(shapes_of(layer), eighth / 8).macs < layer.macs
            assert (eighth / 8 in fractions) == cheaper
            assert saves(decomposition, layer, eighth / 8) == cheaper


def test_layers_without_an_offered_rank_have_a_reason() -> None:
    net = teacher(Grouped)
    texts = Ranks(lowest=0.7, step=0.2).acts_on(trace(net, example(net)))
    assert texts["grouped"] == "70%-90% of the full rank, or all"
    assert texts["head"] == "no: no rank in the range saves multiply-adds"
    assert texts["last"] == "70%-90% of the full rank, or all"


def depthwise(size: int, stride: int) -> Layer:
    """Return the description of a depthwise convolution."""
    return describe("0", nn.Conv2d(16, 16, size, stride, groups=16))


@pytest.mark.parametrize("decomposition", [Svd(), SpatialSvd(), Tucker2()])
def test_depthwise_kernels_are_split_where_the_first_factor_is_cheap_enough(
    decomposition: Svd | SpatialSvd | Tucker2,
) -> None:
    axis = Ranks(decomposition=decomposition)
    assert axis.offered(depthwise(3, 1)) == (0.125, 0.25, 0.375, 1.0)  # 3 + 3 of 9; two of them are 12
    assert axis.offered(depthwise(3, 2)) == (1.0,)  # 3 at two columns + 3 are 9 of 9
    assert axis.offered(depthwise(5, 2)) == (0.125, 0.25, 1.0)  # 5 at two columns + 5 are 15 of 25
    assert axis.offered(depthwise(7, 1)) == (0.125, 0.25, 0.375, 1.0)  # 3 * (7 + 7) of 49
    assert axis.offered(depthwise(1, 1)) == (1.0,)


def test_a_transposed_convolution_is_not_factorized_for_a_reason() -> None:
    layer = replace(depthwise(3, 1), name="up", kind="ConvTranspose2d", groups=1)
    anatomy = Anatomy((layer,), (), (), (), ())
    assert Ranks().acts_on(anatomy) == {"up": "no: a transposed convolution cannot be factorized"}
    assert Ranks().uniform(anatomy, 1.0) == {}
    net = nn.Sequential(OrderedDict(up=nn.ConvTranspose2d(4, 4, 3)))
    with pytest.raises(ValueError, match="only convolutions and linear layers can be factorized, but layer 'up'"):
        Factorize((("up", 0.5),)).apply(net, torch.randn(2, 4, 5, 5))


def test_a_rank_that_saves_nothing_on_the_current_layer_leaves_it_unchanged() -> None:
    net = teacher(Plain)
    thinner = Factorize((("head", 0.99), ("second", 0.25))).apply(net, example(net))
    assert isinstance(thinner.get_submodule("head"), nn.Linear)
    assert isinstance(thinner.get_submodule("second"), nn.Sequential)


def test_the_mode_of_the_model_is_kept() -> None:
    net = teacher(Residual)
    thinner = step(Ranks(), net, 1.0).apply(net, example(net))
    assert not any(module.training for module in thinner.modules())


def test_words_and_choices_name_the_layers() -> None:
    factorize = Factorize((("second", 0.25), ("head", 1.0)))
    assert factorize.words() == "rank 25% second"
    assert values(factorize.choices(Anatomy((), (), (), (), ()))) == {"rank kept": {"second": 0.25, "head": 1.0}}
    assert Factorize((("head", 1.0),)).words() == ""


def test_only_restricts_the_parameters_and_is_named_as_the_reason() -> None:
    net = teacher(Plain)
    anatomy = trace(net, example(net))
    axis = Ranks(only=("second",))
    assert set(axis.uniform(anatomy, 1.0)) == {"rank/second"}
    assert axis.acts_on(anatomy)["first"] == "no: first is not among only=('second',)"


def test_errors_name_wrong_layers_and_settings() -> None:
    net = teacher(Grouped)
    with pytest.raises(ValueError, match="no layer is called 'hed'; the nearest are: head"):
        Factorize((("hed", 0.5),)).apply(net, example(net))
    with pytest.raises(ValueError, match="only convolutions and linear layers can be factorized, but layer 'bn'"):
        Factorize((("bn", 0.5),)).apply(net, example(net))
    with pytest.raises(ValueError, match="no layer is called 'hed'"):
        Ranks(only=("hed",)).uniform(trace(net, example(net)), 0.5)
    with pytest.raises(ValueError, match=r"rank must be a fraction in \(0, 1\], but got 0.0 for layer 'head'"):
        Factorize((("head", 0.0),))
    with pytest.raises(ValueError, match=r"must hold, but got lowest=1.0, step=0.1"):
        Ranks(lowest=1.0, step=0.1)
