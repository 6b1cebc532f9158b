"""The contract of an objective; a test class inherits it and defines how its objective is made."""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
from optuna.trial import FixedTrial

from objectives.objective import Foreseeable
from spaces.axes.bits import BitWidths
from spaces.axes.distill import Temperatures
from spaces.axes.prune import PruneRatios
from spaces.axes.ranks import Ranks
from spaces.costs.frame import Frame
from spaces.dependency.trace import trace
from spaces.network.deploy import deployed
from spaces.plan import Space, architectures_of
from spaces.testing.networks import Plain, example, teacher

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives import Objective

UNIT = re.compile(r"(\w+_)?(macs|bops|parameters|bytes|ms|nats|percent|(nano|micro|milli)?joules|seconds|share)|top\d+")

TOLERANCE = 5e-3  # relative error of a formula; the sizes of files need it, counts are exact


class ObjectiveContract:
    """Tests of an objective: inherit this class, and return the objective from `make`.

    An objective whose examples have another shape than `Plain.shape`, (3, 8, 8), overrides `teacher` too.
    """

    def make(self) -> Objective:
        """Return the objective, a new one at every call."""
        raise NotImplementedError

    def teacher(self) -> tuple[nn.Module, Tensor]:
        """Return a network with the inputs that the objective measures, and a batch of such inputs."""
        net = teacher(Plain)
        return net, example(net)

    def network(self) -> nn.Module:
        """Return the finished network that is measured, a new one at every call."""
        return deployed(*self.teacher())

    def test_a_formula_gives_the_differences_that_are_measured(self) -> None:
        objective = self.make()
        if not isinstance(objective, Foreseeable):
            pytest.skip("it has no formula")
        net, inputs = self.teacher()
        anatomy, whole = trace(net, inputs), deployed(net, inputs)
        space = Space((PruneRatios(), Ranks(), BitWidths()), Temperatures())
        strengths = itertools.product((0.0, 0.5), repeat=3)
        plans = [space.suggest(FixedTrial(space.uniform(anatomy, which)), anatomy) for which in strengths]
        of_teacher, *of_plans = objective.foreseen(architectures_of(Frame(anatomy, whole), [None, *plans]).parts())
        for plan, value in zip(plans, of_plans, strict=True):
            measured = objective(deployed(plan.apply(net, inputs), inputs))
            assert objective(whole) + value - of_teacher == pytest.approx(measured, rel=TOLERANCE), plan.words()

    def test_the_name_ends_in_the_unit(self) -> None:
        assert UNIT.fullmatch(self.make().name)

    def test_the_direction_is_one_that_optuna_knows(self) -> None:
        assert self.make().direction in {"minimize", "maximize"}

    def test_whether_it_is_a_cost_is_a_bool(self) -> None:
        assert isinstance(self.make().is_cost, bool)

    def test_measuring_does_not_change_the_network(self) -> None:
        network = self.network()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
        self.make()(network)
        assert not network.training
        assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
        assert all(before[name].equal(tensor) for name, tensor in network.state_dict().items())

    def test_the_value_is_a_finite_float(self) -> None:
        value = self.make()(self.network())
        assert type(value) is float
        assert math.isfinite(value)

    def test_the_repr_is_the_same_for_every_instance(self) -> None:
        text = repr(self.make())
        assert text == repr(self.make())
        assert "0x" not in text
        assert "tensor(" not in text

    def test_it_is_frozen(self) -> None:
        parameters: Any = vars(type(self.make()))["__dataclass_params__"]
        assert parameters.frozen
