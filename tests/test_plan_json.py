"""Plans are equal after a conversion to JSON and back, and JSON can create nothing but plans."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.results.plan_json import KIND, decode, encode
from search.study.errors import UserError
from spaces import (
    Distill,
    Factorize,
    KMeans,
    Magnitude,
    Plan,
    PowersOfTwo,
    Prune,
    Quantize,
    SecondOrder,
    SpatialSvd,
    Svd,
    Taylor,
    Tucker2,
    Uniform,
)
from tests.small_study import context, study

if TYPE_CHECKING:
    from torch import Tensor, nn

    from spaces import Step

STEPS: dict[str, Step] = {
    "prune": Prune((("layer1.0.conv1", 0.125), ("stem", 0.0)), round_to=8, importance=Taylor(), refit=False),
    "prune by magnitude": Prune((("a", 1 / 3),), importance=Magnitude(norm=1)),
    "prune by second order": Prune((), importance=SecondOrder()),
    "svd": Factorize((("head", 0.1 + 0.2),), Svd()),
    "spatial svd": Factorize((("a", 0.5), ("b", 1.0)), SpatialSvd()),
    "tucker": Factorize((("a", 1.0),), Tucker2()),
    "uniform": Quantize((("a", 8, 32), ("b", 2, 4)), Uniform()),
    "k-means": Quantize((("a", 4, 8),), KMeans(sample=77)),
    "powers of two": Quantize((("a", 3, 32),), PowersOfTwo()),
}


def round_trip(value: object, kinds: tuple[type, ...] = ()) -> object:
    return decode(json.loads(json.dumps(encode(value))), kinds)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_equal_after_a_round_trip(name: str) -> None:
    back = round_trip(STEPS[name])
    assert back == STEPS[name]
    assert type(back) is type(STEPS[name])
    assert hash(back) == hash(STEPS[name])


def test_a_plan_of_every_step_is_equal_after_a_round_trip() -> None:
    plan = Plan(tuple(STEPS.values()), Distill(2.5, 0.3))
    assert round_trip(plan) == plan
    assert repr(round_trip(plan)) == repr(plan)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_plan_is_equal_after_a_round_trip(seed: int) -> None:
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    shared = context(study())
    plan = shared.spec.space.suggest(drawn, shared.subject.anatomy)
    assert round_trip(plan) == plan


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 100))
def test_numbers_are_equal_after_a_round_trip(ratio: float, temperature: float) -> None:
    plan = Plan((Prune((("a", ratio),)),), Distill(temperature))
    assert round_trip(plan) == plan


def test_an_unknown_class_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"no kind of step is called 'Quantise'; the nearest are: Quantize.*; give your own"
    ):
        decode({KIND: "Quantise", "widths": []})


@pytest.mark.parametrize("kind", ["Path", "system", "trace", "deployed", "__class__", "Step", "object", None, 3])
def test_only_dataclasses_of_spaces_are_created(kind: object) -> None:
    with pytest.raises(UserError, match="no kind of step is called"):
        decode({KIND: kind, "a": 1})


def test_an_object_without_a_class_is_an_error() -> None:
    with pytest.raises(UserError, match="no kind of step is called 'None'"):
        decode([{"ratios": []}])


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(UserError, match="this version cannot create Quantize from the fields in the plan: "):
        decode({KIND: "Quantize", "bits": 3})


def test_a_value_out_of_range_is_an_error() -> None:
    with pytest.raises(
        UserError,
        match=r"this version cannot create Prune from the fields in the plan: .*ratio must be in \[0, 1\), but got 3",
    ):
        decode({KIND: "Prune", "ratios": [["a", 3]]})


@dataclass(frozen=True)
class Mine:
    """A step of the user's own."""

    names: tuple[str, ...]

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        return model


def test_a_step_of_the_user_is_created_if_its_class_is_given() -> None:
    mine = Plan((), Distill()), Mine(("a", "b"))
    with pytest.raises(UserError, match="Mine"):
        round_trip(mine)
    assert round_trip(mine, (Mine,)) == mine


def test_numbers_of_numpy_become_json_numbers() -> None:
    plan = Quantize((("first", int(np.int64(4)), 8),))
    assert json.dumps(encode(Quantize((("first", np.int64(4), 8),)))) == json.dumps(encode(plan))  # type: ignore[arg-type]


def test_a_value_without_a_json_form_is_an_error() -> None:
    with pytest.raises(UserError, match=r"must be numbers, texts, tuples or dataclasses, but got array\(\[1"):
        encode((np.array([1]),))
