"""A space draws plans; a plan applies its steps in order and describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from torch import Tensor, nn

from spaces import (
    BitWidths,
    Distill,
    Factorize,
    Plan,
    Prune,
    PruneRatios,
    Quantize,
    Ranks,
    Space,
    Temperatures,
    trace,
)  # fmt: skip
from spaces.network.anatomy import Anatomy, Group, Member
from spaces.network.layer_runs import describe
from spaces.network.messages import unknown_name
from spaces.plan import Choice, nearest_offered, summarize
from spaces.testing.axis_contract import values
from spaces.testing.networks import Plain, example, teacher

if TYPE_CHECKING:
    from spaces.costs.architectures import Architectures

SPACE = Space(steps=(PruneRatios(), Ranks(), BitWidths()), recovery=Temperatures())


@dataclass(frozen=True)
class Append:
    """A step that appends a module of torch to the network."""

    module: str

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        return nn.Sequential(*model.children(), getattr(nn, self.module)())

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        raise NotImplementedError

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        raise NotImplementedError

    def words(self) -> str:
        return f"add {self.module}" if self.module != "Identity" else ""


def test_steps_are_applied_in_order() -> None:
    plan = Plan((Append("ReLU"), Append("Tanh")), Distill())
    model = nn.Sequential()
    assert [type(module) for module in plan.apply(model, Tensor()).children()] == [nn.ReLU, nn.Tanh]
    assert len(model) == 0


def test_the_words_of_a_plan_join_those_of_its_steps() -> None:
    assert (
        Plan((Append("ReLU"), Append("Identity"), Append("Tanh")), Distill()).words()
        == "add ReLU; add Tanh; distil T=4, weight 0.7"
    )
    assert Plan((Append("Identity"),), Distill()).words() == "nothing removed; distil T=4, weight 0.7"


def test_the_choices_of_a_plan_join_those_of_its_steps() -> None:
    steps = (Prune((("a", 0.5),)), Factorize((("b", 0.25),)), Quantize((("c", 4, 8),)))
    group = Group("a", 2, (Member("a", "out", 0, ((0,), (1,))), Member("tied", "out", 0, ((0,), (1,)))))
    layers = (describe("a", nn.Linear(2, 2)), describe("tied", nn.Linear(2, 2)))
    assert values(Plan(steps, Distill()).choices(Anatomy(layers, (group,), (), (), ()))) == {
        "channels removed": {"a": 0.5, "tied": 0.5},
        "rank kept": {"b": 0.25},
        "weight bits": {"c": 4},
        "input bits": {"c": 8},
    }


def test_choices_of_two_steps_with_one_title_are_joined() -> None:
    steps = (Quantize((("a", 4, 8),)), Quantize((("b", 8, 8),)))
    layers = (describe("a", nn.Linear(2, 2)), describe("b", nn.Linear(2, 2)))
    choices = Plan(steps, Distill()).choices(Anatomy(layers, (), (), (), ()))
    assert values(choices) == {"weight bits": {"a": 4, "b": 8}, "input bits": {"a": 8, "b": 8}}


def test_a_space_draws_one_step_for_each_axis_in_order() -> None:
    net = teacher(Plain)
    plan = SPACE.suggest(optuna.create_study().ask(), trace(net, example(net)))
    assert [type(step) for step in plan.steps] == [Prune, Factorize, Quantize]
    assert isinstance(plan.recovery, Distill)


def test_an_earlier_plan_is_rebuilt_from_its_parameters() -> None:
    net = teacher(Plain)
    anatomy = trace(net, example(net))
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(5)).ask()
    plan = SPACE.suggest(trial, anatomy)
    again = SPACE.suggest(FixedTrial(trial.params), anatomy)
    assert (plan, hash(plan), plan.words()) == (again, hash(again), again.words())


def test_parameters_are_named_by_axis_and_layer() -> None:
    net = teacher(Plain)
    params = SPACE.uniform(trace(net, example(net)), (0.5, 0.0, 1.0))
    assert {name.partition("/")[0] for name in params} == {
        "prune", "rank", "weight_bits", "activation_bits", "distill",
    }  # fmt: skip
    plan = SPACE.suggest(FixedTrial(params), trace(net, example(net)))
    chosen = values(plan.choices(trace(net, example(net))))
    assert chosen["channels removed"] == {"first": 0.375, "second": 0.375}
    assert set(chosen["rank kept"].values()) == {1.0}
    assert chosen["weight bits"] == {"first": 2, "second": 2, "head": 2}


def test_every_axis_needs_a_strength() -> None:
    net = teacher(Plain)
    with pytest.raises(ValueError, match="zip"):
        SPACE.uniform(trace(net, example(net)), (0.5,))


@pytest.mark.parametrize(("value", "nearest"), [(2, 2), (5.4, 4), (19, 8), (21, 32), (100, 32)])
def test_values_between_offered_ones_are_rounded_to_the_nearest(value: float, nearest: float) -> None:
    assert nearest_offered(value, (2, 4, 8, 32)) == nearest


@given(st.floats(-1e6, 1e6), st.lists(st.floats(-1e6, 1e6), min_size=1).map(tuple))
def test_the_nearest_value_is_offered_and_its_own_nearest(value: float, offered: tuple[float, ...]) -> None:
    nearest = nearest_offered(value, offered)
    assert nearest in offered
    assert nearest_offered(nearest, offered) == nearest
    assert all(abs(nearest - value) <= abs(other - value) for other in offered)


def test_rare_choices_list_their_layers_and_common_ones_their_number() -> None:
    pairs = (*((f"conv{index}", "4 bit") for index in range(5)), ("head", "8 bit"))
    assert summarize(pairs) == "8 bit head, 4 bit (5 layers)"
    assert summarize(pairs, most=5) == "8 bit head, 4 bit conv0, conv1, conv2, conv3, conv4"
    assert summarize(()) == ""


def test_an_unknown_name_lists_the_nearest() -> None:
    names = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "head"]
    message = unknown_name("layer", "layer1.conv3", names)
    assert message.startswith("no layer is called 'layer1.conv3'; the nearest are: ")
    assert set(message.rpartition(": ")[2].split(", ")) == set(names[:3])
    assert unknown_name("layer", "§", names).endswith("the nearest are: layer1.conv1, layer1.conv2, layer2.conv1")
    assert unknown_name("layer", "conv", []).endswith("the nearest are: none at all")
