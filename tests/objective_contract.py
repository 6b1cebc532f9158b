"""What every objective promises; a test class inherits it and says how its objective is made."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from spaces import deployed
from tests.small_study import splits, teacher

if TYPE_CHECKING:
    from objectives import Objective

UNIT = re.compile(r"(\w+_)?(macs|bops|parameters|bytes|ms|nats|joules|seconds|share)|top\d+")


class ObjectiveContract:
    """Inherit it, and return your objective from `make`."""

    def make(self) -> Objective:
        """Return the objective, made anew at every call."""
        raise NotImplementedError

    def test_the_name_ends_in_its_unit(self) -> None:
        assert UNIT.fullmatch(self.make().name)

    def test_the_direction_is_one_that_optuna_knows(self) -> None:
        assert self.make().direction in {"minimize", "maximize"}

    def test_whether_it_is_a_cost_is_a_bool(self) -> None:
        assert isinstance(self.make().is_cost, bool)

    def test_measuring_changes_nothing_in_the_network(self) -> None:
        network = deployed(teacher(), splits().train.inputs[:8])
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
        self.make()(network)
        assert not network.training
        assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()]
        assert all(before[name].equal(tensor) for name, tensor in network.state_dict().items())

    def test_the_value_is_a_finite_float(self) -> None:
        value = self.make()(deployed(teacher(), splits().train.inputs[:8]))
        assert type(value) is float
        assert math.isfinite(value)

    def test_its_text_is_the_same_wherever_it_is_made(self) -> None:
        text = repr(self.make())
        assert text == repr(self.make())
        assert "0x" not in text
        assert "tensor(" not in text

    def test_it_is_frozen(self) -> None:
        parameters: Any = vars(type(self.make()))["__dataclass_params__"]
        assert parameters.frozen
