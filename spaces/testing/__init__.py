"""Contract tests that an axis, objective or runtime of your own inherits, and small networks. Needs pytest."""

import pytest

_CONTRACTS = "axis_contract", "objective_contract", "runtime_contract"
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in _CONTRACTS))  # failures show the values

from spaces.testing.axis_contract import AxisContract  # noqa: E402
from spaces.testing.objective_contract import ObjectiveContract  # noqa: E402
from spaces.testing.runtime_contract import RuntimeContract  # noqa: E402

__all__ = ["AxisContract", "ObjectiveContract", "RuntimeContract"]
