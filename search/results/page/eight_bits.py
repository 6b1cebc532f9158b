"""The teacher at 8 bits without training: what a converter gives, the point that a search has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.study.console import console
from search.study.errors import reason_of
from search.study.records import EIGHT_BITS
from spaces import BitWidths, Plan, Quantize

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context

WANTED = (8, 8), (8, 32)  # bits of weights and of inputs; the second where inputs cannot be rounded


def teacher_at_8_bits(study: Study, context: Context) -> dict[str, float]:
    """Return the value of every objective for the teacher with 8-bit weights and inputs wherever the study offers them.

    It is measured once and kept with the study. The values are empty if the study has no axis of bits that offers 8.
    """
    if EIGHT_BITS not in study.user_attrs:
        study.set_user_attr(EIGHT_BITS, _measured(context))
    return dict(study.user_attrs[EIGHT_BITS])


def _measured(context: Context) -> dict[str, float]:
    axis = next((axis for axis in context.spec.space.steps if isinstance(axis, BitWidths)), None)
    offered = {} if axis is None else axis.offered(context.subject.anatomy)
    widths = [(name, *pair) for name, pairs in offered.items() for pair in [_first(pairs)] if pair is not None]
    if axis is None or not widths:
        return {}
    plan = Plan((Quantize(tuple(widths), axis.grid),), context.usual_recovery)
    try:
        return context.measure(context.build(plan), context.spec.measured)
    except Exception as error:  # noqa: BLE001 - a network may fail in any way; the report has more to show
        console.print(f"the teacher at 8 bits cannot be measured: {reason_of(error)}")
        return {}


def _first(pairs: tuple[tuple[int, int], ...]) -> tuple[int, int] | None:
    """Return the first of the wanted pairs that is offered."""
    return next((pair for pair in WANTED if pair in pairs), None)
