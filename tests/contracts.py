"""What every axis promises; a test class inherits it and names its axis."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, ClassVar

import optuna
import pytest
import torch
from optuna.trial import FixedTrial

from objectives.bops import Bops
from objectives.macs import Macs
from objectives.parameters import Parameters
from search.costs.cost_model import CostModel
from spaces import BitWidths, Depth, Distill, Plan, PruneRatios, Ranks, deployed, trace
from tests.nets import CLASSES, NETS, Net, example, teacher

if TYPE_CHECKING:
    from spaces import Axis, Step
    from spaces.plan import Choice

ORDER: tuple[Axis, ...] = (PruneRatios(), Depth(), Ranks(), BitWidths())
HALF = 0.5


def step(axis: Axis, net: Net, strength: float) -> Step:
    """Return the step of an axis that compresses every layer alike."""
    anatomy = trace(net, example(net))
    return axis.suggest(FixedTrial(axis.uniform(anatomy, strength)), anatomy)


def drawn(axis: Axis, net: Net, seed: int) -> tuple[Step, dict[str, float]]:
    """Return a random step of the axis and its parameters."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    trial = study.ask()
    return axis.suggest(trial, trace(net, example(net))), trial.params


def values(choices: dict[str, dict[str, Choice]]) -> dict[str, dict[str, float]]:
    """Return the chosen numbers alone."""
    return {title: {name: choice.value for name, choice in chosen.items()} for title, chosen in choices.items()}


class AxisContract:
    """Tests of an axis; on all small networks, or on those that a class names."""

    axis: ClassVar[Axis]
    nets: ClassVar[tuple[type[Net], ...]] = NETS

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Run every test on every network."""
        if "net" in metafunc.fixturenames:
            metafunc.parametrize("net", cls.nets, ids=[kind.__name__ for kind in cls.nets], indirect=True)

    @pytest.fixture
    def net(self, request: pytest.FixtureRequest) -> Net:
        return teacher(request.param)

    def test_the_given_model_is_not_changed(self, net: Net) -> None:
        given = copy.deepcopy(net).train()
        next(given.children()).eval()
        before = {name: value.clone() for name, value in given.state_dict().items()}
        modes = [module.training for module in given.modules()]
        step(self.axis, given, 1.0).apply(given, example(net))
        assert before.keys() == given.state_dict().keys()
        assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
        assert modes == [module.training for module in given.modules()]
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in given.modules())

    @pytest.mark.parametrize("strength", [HALF, 1.0])
    def test_outputs_keep_their_shape_and_are_finite(self, net: Net, strength: float) -> None:
        output = step(self.axis, net, strength).apply(net, example(net))(example(net))
        assert output.shape == (16, CLASSES)
        assert output.isfinite().all()

    def test_no_strength_changes_nothing(self, net: Net) -> None:
        same = step(self.axis, net, 0.0).apply(net, example(net))
        assert torch.equal(same(example(net)), net(example(net)))

    def test_more_strength_is_never_bigger(self, net: Net) -> None:
        costs = []
        for strength in (0.0, HALF, 1.0):
            finished = deployed(step(self.axis, net, strength).apply(net, example(net)), example(net))
            costs.append([cost(finished) for cost in (Macs(example(net)), Bops(example(net)), Parameters())])
        for less, more in itertools.pairwise(costs):
            assert all(after <= before for before, after in zip(less, more, strict=True))
        assert costs[-1] < costs[0]

    def test_its_costs_are_foreseen(self, net: Net) -> None:
        objectives = (Macs(example(net)), Bops(example(net)), Parameters())
        cost_model = CostModel(trace(net, example(net)), deployed(net, example(net)), objectives)
        plan = Plan((step(self.axis, net, HALF),), Distill())
        finished = deployed(plan.apply(net, example(net)), example(net))
        foreseen = cost_model.exact([plan])
        assert {x.name: float(foreseen[x.name][0]) for x in objectives} == {x.name: x(finished) for x in objectives}

    def test_gradients_reach_every_parameter(self, net: Net) -> None:
        model = step(self.axis, net, HALF).apply(net, example(net)).train()
        model(example(net)).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.dim() == 1 or parameter.grad.any(), name

    def test_it_goes_with_the_other_axes(self, net: Net) -> None:
        place = [type(axis) for axis in ORDER].index(type(self.axis))
        others = [index for index in range(len(ORDER)) if index != place]
        for company in (*([other] for other in others), others):
            axes = [self.axis if index == place else ORDER[index] for index in sorted([place, *company])]
            plan = Plan(tuple(step(axis, net, HALF) for axis in axes), Distill())
            model = plan.apply(net, example(net))
            assert model(example(net)).isfinite().all()
            assert deployed(model, example(net))(example(net)).shape == (16, CLASSES)

    def test_trained_weights_fit_a_model_built_anew(self, net: Net) -> None:
        act = step(self.axis, net, HALF)
        trained = act.apply(net, example(net))
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.mul_(1.01)
        fresh = act.apply(copy.deepcopy(net), example(net))
        assert not torch.equal(fresh(example(net)), trained(example(net)))
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(fresh(example(net)), trained(example(net)))

    def test_the_same_parameters_give_an_equal_step(self, net: Net) -> None:
        one, params = drawn(self.axis, net, 0)
        again = self.axis.suggest(FixedTrial(params), trace(net, example(net)))
        assert (one, hash(one)) == (again, hash(again))
        other, _ = drawn(self.axis, net, 1)
        assert one != other

    def test_which_parameters_exist_does_not_depend_on_their_values(self, net: Net) -> None:
        anatomy = trace(net, example(net))
        sets = [set(drawn(self.axis, net, seed)[1]) for seed in range(4)]
        sets += [set(self.axis.uniform(anatomy, strength)) for strength in (0.0, 1.0)]
        assert all(names == sets[0] for names in sets)

    def test_every_layer_has_parameters_or_a_reason(self, net: Net) -> None:
        anatomy = trace(net, example(net))
        said = self.axis.acts_on(anatomy)
        assert set(said) == {layer.name for layer in anatomy.layers}
        for text in said.values():
            assert text
            assert not text.startswith("no") or len(text) > len("no: ")
        acting = {name.partition("/")[2] for name in self.axis.uniform(anatomy, HALF)}
        assert acting <= {name for name, text in said.items() if not text.startswith("no: ")}
