"""The kinds of work in networks, from which latency is predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from objectives.layers import FLOAT_BITS
from search.costs.work import Ends, work
from spaces import Distill, Factorize, Plan, Quantize
from spaces.plan import architectures_of
from tests.small_study import context, study

ENDS = Ends(64, 4)
FIRST, SECOND, HEAD = 8 * 9 * 64, 8 * 8 * 9 * 16, 32 * 4  # multiply-adds
WRITTEN = 8 * 64, 8 * 16, 4
TOTALS = slice(-15, None)


def counted(*steps: object, columns: tuple[int, ...] = (0, 1, 2)) -> np.ndarray:
    """Return the work of the small network after these steps."""
    shared = context(study(5))
    parts = architectures_of(shared.cost_model.frame, [Plan(steps, Distill())]).parts()  # type: ignore[arg-type]
    one: np.ndarray = work(parts.of_layers(columns), ENDS)[0]
    return one


def test_totals_of_a_network_in_floating_point() -> None:
    weights = 8 * 9 + 8 * 8 * 9 + HEAD
    read = 64 + WRITTEN[0] + WRITTEN[1]
    assert counted()[TOTALS].tolist() == [
        weights, sum(WRITTEN), read, *[0] * 6, 3, 3, *[0] * 4, 68, 0, 1,
    ][-15:]  # fmt: skip


def test_work_of_a_network_is_the_sum_of_its_parts() -> None:
    whole = counted()
    each = counted(columns=(0,)) + counted(columns=(1,)) + counted(columns=(2,))
    multiply_adds = slice(0, 20)
    assert whole[multiply_adds].tolist() == each[multiply_adds].tolist()


def test_the_side_of_a_layer_that_is_converted_depends_on_its_neighbours() -> None:
    """Between two integer layers nothing is converted; elsewhere the numbers read and written are."""
    whole = counted(Quantize((("first", 8, 8), ("second", 8, 8), ("head", 8, FLOAT_BITS))))
    alone = counted(Quantize((("first", FLOAT_BITS, FLOAT_BITS), ("second", 8, 8), ("head", 8, FLOAT_BITS))))
    entered, entries, _, _, left, exits = whole[-15:-9]
    assert [entered, entries] == [64, 1], "at the first layer only"
    assert [left, exits] == [WRITTEN[1], 1], "after the second layer only"
    assert alone[-15:-13].tolist() == [WRITTEN[0], 1]
    assert whole[-7:-5].tolist() == [64, 1], "the file takes integers"
    assert alone[-7:-3].tolist() == [0, 0, 0, 0]
    last = counted(Quantize((("head", 8, 8),)))
    assert last[-5:-3].tolist() == [4, 1], "the file returns integers"


@pytest.mark.parametrize(("bits", "unpacked"), [(8, False), (4, True)])
def test_elements_of_weights_that_are_unpacked_are_counted(bits: int, *, unpacked: bool) -> None:
    difference = counted(Quantize((("second", bits, FLOAT_BITS),))) - counted()
    assert (8 * 8 * 9 in difference.tolist()) == unpacked


def test_ranks_add_layers_and_numbers() -> None:
    before, after = counted(), counted(Factorize((("second", 0.25),)))
    assert after[-8] > before[-8], "layers that are executed"
    assert after[-9] == before[-9], "layers of the teacher"


def test_a_file_that_resizes_its_input_has_that_work() -> None:
    parts = architectures_of(context(study(5)).cost_model.frame, [Plan((), Distill())]).parts()
    plain, resized = (work(replace(parts, resized=np.array([flag])), ENDS)[0] for flag in (0.0, 1.0))
    (changed,) = np.flatnonzero(plain != resized)
    assert resized[changed] == ENDS.taken
