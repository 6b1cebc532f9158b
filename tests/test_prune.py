"""Pruning fulfils the contract of an axis, cuts the chosen units, and its errors name what is wrong."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from torch import nn

from spaces import BitWidths, Depth, Magnitude, Prune, PruneRatios, Ranks, Taylor, trace
from spaces.axes.prune import kept_units
from spaces.network.statistics import reestimate
from spaces.testing.axis_contract import AxisContract, step, values
from spaces.testing.networks import Grouped, Mlp, Net, Padded, Plain, Residual, example, teacher

AFTER = Depth(), Ranks(), BitWidths()


class TestPruneRatios(AxisContract):
    before, after = (), AFTER
    axis = PruneRatios()


class TestPruneRatiosByMagnitude(AxisContract):
    before, after = (), AFTER
    axis = PruneRatios(importance=Magnitude(1), refit=False)
    networks = (Residual, Grouped)


class TestPruneRatiosByTaylor(AxisContract):
    before, after = (), AFTER
    axis = PruneRatios(importance=Taylor(), round_to=2)
    networks = (Residual, Mlp)


@given(st.integers(1, 512), st.floats(0, 0.999), st.sampled_from([1, 2, 8, 16]))
def test_the_number_of_kept_units_is_a_multiple_or_all_units(units: int, ratio: float, round_to: int) -> None:
    kept = kept_units(units, ratio, round_to)
    assert 1 <= kept <= units
    assert kept == units or kept % round_to == 0
    assert kept >= units - round(ratio * units)


def test_the_ratio_determines_how_many_channels_are_removed() -> None:
    net = teacher(Plain)
    smaller = Prune((("first", 0.25), ("second", 0.5))).apply(net, example(net))
    shapes = {name: tuple(value.shape) for name, value in smaller.state_dict().items()}
    assert shapes["first.weight"] == (6, 3, 3, 3)
    assert shapes["second.weight"] == (6, 6, 3, 3)
    assert shapes["norm.running_var"] == (6,)
    assert shapes["head.weight"] == (5, 24)
    assert [m.out_channels for m in smaller.modules() if isinstance(m, nn.Conv2d)] == [6, 6]


@pytest.mark.parametrize(("kind", "group"), [(Plain, "first"), (Mlp, "second")])
def test_refitting_brings_the_outputs_closer_to_the_teacher(kind: type[Net], group: str) -> None:
    net = copy.deepcopy(teacher(kind))
    inputs = example(net, 64)
    reestimate(net, inputs)
    ratios = ((group, 0.5),)
    with torch.no_grad():
        plain, refitted = (
            (Prune(ratios, importance=Magnitude(), refit=refit).apply(net, inputs)(inputs) - net(inputs))
            .square()
            .mean()
            for refit in (False, True)
        )
    assert refitted < 0.7 * plain


def test_statistics_are_those_of_the_example() -> None:
    net = teacher(Residual)
    smaller = Prune((("stem", 0.5),)).apply(net, example(net))
    batch = smaller.get_submodule("stem")(example(net))
    torch.testing.assert_close(smaller.get_buffer("bn.running_mean"), batch.mean((0, 2, 3)))


def test_the_mode_of_the_model_is_kept() -> None:
    net = teacher(Residual)
    assert not step(PruneRatios(), net, 0.5).apply(net, example(net)).training


def test_optuna_accepts_ratios_in_steps_of_a_tenth() -> None:
    net = teacher(Plain)
    axis = PruneRatios(highest=0.7, step=0.1)
    anatomy = trace(net, example(net))
    for strength in (0.0, 0.3, 0.5, 1.0):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            axis.suggest(FixedTrial(axis.uniform(anatomy, strength)), anatomy)


def test_words_and_choices_name_the_groups() -> None:
    prune = Prune((("first", 0.25), ("second", 0.0)))
    assert prune.words() == "channels -25% first"
    net = teacher(Plain)
    assert values(prune.choices(trace(net, example(net)))) == {"channels removed": {"first": 0.25, "second": 0.0}}
    assert Prune((("first", 0.0),)).words() == ""


def test_only_restricts_the_parameters_and_is_named_as_the_reason() -> None:
    net = teacher(Plain)
    anatomy = trace(net, example(net))
    axis = PruneRatios(only=("second",))
    assert set(axis.uniform(anatomy, 1.0)) == {"prune/second"}
    assert axis.acts_on(anatomy)["first"] == "no: first is not among only=('second',)"


def test_layers_have_a_range_of_units_or_a_reason() -> None:
    net = teacher(Padded)
    assert PruneRatios().acts_on(trace(net, example(net))) == {
        "stem": "2-8 of 8 units, together with conv2",
        "conv1": "4-16 of 16 units",
        "conv2": "2-8 of 8 units, together with stem",
        "head": "no: its channels stay: they are outputs of the network",
    }


def test_layers_of_one_group_name_each_other() -> None:
    net = teacher(Residual)
    texts = PruneRatios().acts_on(trace(net, example(net)))
    assert texts["stem"] == "2-8 of 8 units, together with block1.conv2"


def test_an_unknown_group_lists_the_nearest() -> None:
    net = teacher(Plain)
    with pytest.raises(ValueError, match="no group of channels is called 'frist'; the nearest are: first"):
        Prune((("frist", 0.5),)).apply(net, example(net))
    with pytest.raises(ValueError, match="no group of channels is called 'secnd'; the nearest are: second"):
        PruneRatios(only=("secnd",)).uniform(trace(net, example(net)), 0.5)


def test_errors_name_the_rule_and_the_wrong_values() -> None:
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\), but got 1.0 for group 'stem'"):
        Prune((("stem", 1.0),))
    with pytest.raises(ValueError, match=r"0.001 <= step <= highest < 1 must hold, but got step=0.5, highest=0.25"):
        PruneRatios(highest=0.25, step=0.5)
    with pytest.raises(ValueError, match="round_to must be a whole number, at least 1, but got 0"):
        PruneRatios(round_to=0)
    with pytest.raises(ValueError, match="norm must be 1 or 2, but got 3"):
        Magnitude(3)


def test_a_ratio_that_rounding_undoes_is_the_plan_without_pruning() -> None:
    net = teacher(Residual)
    anatomy = trace(net, example(net))
    axis = PruneRatios(round_to=8)
    drawn = axis.uniform(anatomy, 0.2)
    assert set(drawn.values()) == {0.125}
    plan = axis.suggest(FixedTrial(drawn), anatomy)
    assert plan.words() == ""
    assert plan == axis.suggest(FixedTrial(axis.uniform(anatomy, 0.0)), anatomy)


def test_ratios_that_rounding_makes_equal_are_one_plan() -> None:
    net = teacher(Residual)
    anatomy, axis = trace(net, example(net)), PruneRatios(round_to=4, only=("stem",))
    drawn = [axis.suggest(FixedTrial({"prune/stem": ratio}), anatomy)
             for ratio in (0.0, 0.125, 0.25, 0.5, 0.625, 0.75)]  # fmt: skip
    kept = [dict(step.ratios)["stem"] for step in drawn]  # of 8 units: 8, 8 (7), 8 (6), 4, 4 (3), 4 (2)
    assert kept == [0.0, 0.0, 0.0, 0.5, 0.5, 0.5]
    assert drawn[3] == drawn[5]
    assert drawn[0] == drawn[2]
