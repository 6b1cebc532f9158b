"""The contract of an axis, as tests that a test class inherits."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from typing import TYPE_CHECKING, Any, ClassVar

import optuna
import pytest
import torch
from optuna.trial import FixedTrial

from objectives import Bops, Macs, Parameters
from spaces.axes.bits import BitWidths
from spaces.axes.depth import Depth
from spaces.axes.distill import Distill, Temperatures
from spaces.axes.prune import PruneRatios
from spaces.axes.ranks import Ranks
from spaces.costs.frame import Frame
from spaces.network.deploy import deployed
from spaces.plan import Plan, Space, architectures_of
from spaces.testing.networks import CLASSES, NETWORKS, Net, example, teacher

if TYPE_CHECKING:
    from torch import nn

    from spaces.network.anatomy import Anatomy
    from spaces.plan import Axis, Choice, Step

HALF = 0.5  # strength of most steps that are tested


def traced(net: Net, *axes: Axis) -> Anatomy:
    """Return the anatomy of a network, with all that these axes have to know."""
    return Space(axes, Temperatures()).trace(net, example(net))


def step(axis: Axis, net: Net, strength: float) -> Step:
    """Return the step of an axis that compresses all layers equally."""
    anatomy = traced(net, axis)
    return axis.suggest(FixedTrial(axis.uniform(anatomy, strength)), anatomy)


def drawn(axis: Axis, net: Net, seed: int) -> tuple[Step, dict[str, float]]:
    """Return a random step of an axis, and its parameters."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    trial = study.ask()
    return axis.suggest(trial, traced(net, axis)), trial.params


def values(choices: dict[str, dict[str, Choice]]) -> dict[str, dict[str, float]]:
    """Return only the chosen numbers of the choices."""
    return {title: {name: choice.value for name, choice in chosen.items()} for title, chosen in choices.items()}


def assert_costs_are_exact(net: Net, anatomy: Anatomy, *steps: Step) -> nn.Module:
    """Return the finished network of these steps; its costs must be those that are computed from shapes."""
    plan, inputs = Plan(steps, Distill()), example(net)
    whole, finished = deployed(net, inputs), deployed(plan.apply(net, inputs), inputs)
    rows = architectures_of(Frame(anatomy, whole), [None, plan]).parts()
    for cost in (Macs(inputs), Bops(inputs), Parameters()):
        of_teacher, of_plan = cost.foreseen(rows)
        assert cost(whole) + of_plan - of_teacher == cost(finished), f"{cost.name} of {plan.words()}"
    return finished


class AxisContract:
    """Tests of an axis; a test class inherits them and sets the attribute `axis`.

    Attributes
    ----------
    axis
        The axis to test.
    before, after
        The axes before and after it in a space; the tests combine it with each of them, and with all together.
    networks
        Classes of the networks on which it is tested.

    Examples
    --------
    >>> from spaces import BitWidths, PruneRatios, Ranks
    >>> from spaces.testing import AxisContract
    >>> class TestRanks(AxisContract):
    ...     axis = Ranks()
    ...     before = (PruneRatios(),)
    ...     after = (BitWidths(),)
    """

    axis: ClassVar[Axis]
    before: ClassVar[tuple[Axis, ...]] = (PruneRatios(), Depth())
    after: ClassVar[tuple[Axis, ...]] = (Ranks(), BitWidths())
    networks: ClassVar[tuple[type[Net], ...]] = NETWORKS

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Run every test on every network."""
        if "net" in metafunc.fixturenames:
            metafunc.parametrize("net", cls.networks, ids=[kind.__name__ for kind in cls.networks], indirect=True)

    @pytest.fixture
    def net(self, request: pytest.FixtureRequest) -> Net:
        return teacher(request.param)

    def test_apply_does_not_change_the_model(self, net: Net) -> None:
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

    def test_strength_zero_changes_nothing(self, net: Net) -> None:
        same = step(self.axis, net, 0.0).apply(net, example(net))
        assert torch.equal(same(example(net)), net(example(net)))

    def test_no_cost_grows_with_the_strength(self, net: Net) -> None:
        costs = []
        for strength in (0.0, HALF, 1.0):
            finished = deployed(step(self.axis, net, strength).apply(net, example(net)), example(net))
            costs.append([cost(finished) for cost in (Macs(example(net)), Bops(example(net)), Parameters())])
        for less, more in itertools.pairwise(costs):
            assert all(after <= before for before, after in zip(less, more, strict=True))
        assert costs[-1] < costs[0]

    def test_costs_computed_from_shapes_are_exact(self, net: Net) -> None:
        assert_costs_are_exact(net, traced(net, self.axis), step(self.axis, net, HALF))

    def test_gradients_reach_every_parameter(self, net: Net) -> None:
        model = step(self.axis, net, HALF).apply(net, example(net)).train()
        model(example(net)).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.dim() == 1 or parameter.grad.any(), name

    def test_it_combines_with_the_other_axes(self, net: Net) -> None:
        others = len(self.before) + len(self.after)
        for combined in (*({other} for other in range(others)), set(range(others))):
            chosen = [axis for place, axis in enumerate((*self.before, *self.after)) if place in combined]
            place = len(combined & set(range(len(self.before))))
            axes = [*chosen[:place], self.axis, *chosen[place:]]
            finished = assert_costs_are_exact(net, traced(net, *axes), *(step(axis, net, HALF) for axis in axes))
            assert finished(example(net)).shape == (16, CLASSES)
            assert finished(example(net)).isfinite().all()

    def test_costs_of_random_plans_of_all_axes_are_exact(self, net: Net) -> None:
        space = Space((*self.before, self.axis, *self.after), Temperatures())
        anatomy = space.trace(net, example(net))
        for seed in range(3):
            trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
            assert_costs_are_exact(net, anatomy, *space.suggest(trial, anatomy).steps)

    def test_choices_are_described_for_layers(self, net: Net) -> None:
        anatomy = traced(net, self.axis)
        names = {layer.name for layer in anatomy.layers}
        choices = step(self.axis, net, HALF).choices(anatomy)
        for title, chosen in choices.items():
            assert chosen.keys() <= names, title
            assert all(0 <= choice.strength <= 1 and choice.word for choice in chosen.values()), title
        others = [axis for axis in (*self.before, *self.after) if type(axis) is not type(self.axis)]
        assert not [title for axis in others for title in step(axis, net, HALF).choices(anatomy) if title in choices]

    def test_steps_consist_of_json_values(self, net: Net) -> None:
        """An exported plan is JSON; the numbers of numpy, for example, are not."""
        one: Any = drawn(self.axis, net, 0)[0]
        assert json.dumps(dataclasses.asdict(one))

    def test_trained_weights_can_be_loaded_into_a_new_model(self, net: Net) -> None:
        half = step(self.axis, net, HALF)
        trained = half.apply(net, example(net))
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.mul_(1.01)
        fresh = half.apply(copy.deepcopy(net), example(net))
        assert not torch.equal(fresh(example(net)), trained(example(net)))
        fresh.load_state_dict(trained.state_dict())
        assert torch.equal(fresh(example(net)), trained(example(net)))

    def test_the_same_parameters_give_an_equal_step(self, net: Net) -> None:
        one, params = drawn(self.axis, net, 0)
        again = self.axis.suggest(FixedTrial(params), traced(net, self.axis))
        assert (one, hash(one)) == (again, hash(again))
        assert any(one != drawn(self.axis, net, seed)[0] for seed in range(1, 6))

    def test_the_names_of_parameters_do_not_depend_on_their_values(self, net: Net) -> None:
        anatomy = traced(net, self.axis)
        sets = [set(drawn(self.axis, net, seed)[1]) for seed in range(4)]
        sets += [set(self.axis.uniform(anatomy, strength)) for strength in (0.0, 1.0)]
        assert all(names == sets[0] for names in sets)

    def test_every_layer_has_parameters_or_a_reason(self, net: Net) -> None:
        anatomy = traced(net, self.axis)
        texts = self.axis.acts_on(anatomy)
        assert set(texts) == {layer.name for layer in anatomy.layers}
        for text in texts.values():
            assert text
            assert not text.startswith("no") or len(text) > len("no: ")
        acting = {name.partition("/")[2] for name in self.axis.uniform(anatomy, HALF)}
        assert acting <= {name for name, text in texts.items() if not text.startswith("no: ")}
