"""The contract of an objective; a test class inherits it and defines how its objective is made."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from spaces.network.deploy import deployed
from spaces.testing.networks import Plain, example, teacher

if TYPE_CHECKING:
    from torch import nn

    from objectives import Objective

UNIT = re.compile(r"(\w+_)?(macs|bops|parameters|bytes|ms|nats|percent|(nano|micro|milli)?joules|seconds|share)|top\d+")


class ObjectiveContract:
    """Tests of an objective: inherit this class, and return the objective from `make`.

    An objective whose examples have another shape than `Plain.shape`, (3, 8, 8), overrides `network` too.
    """

    def make(self) -> Objective:
        """Return the objective, a new one at every call."""
        raise NotImplementedError

    def network(self) -> nn.Module:
        """Return the finished network that is measured, a new one at every call."""
        return deployed(teacher(Plain), example(teacher(Plain)))

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
