"""The studies on which the search benchmark compares searches: high top-1 and few bit operations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from objectives import Bops, Limit, Macs
from studies import digits, fashion_mnist, photographs, speech_digits

if TYPE_CHECKING:
    from collections.abc import Callable

    from search import StudySpec

STUDIES: dict[str, Callable[[], StudySpec]] = {
    "digits": digits.study,
    "mobilenet": photographs.mobilenet,
    "residual": fashion_mnist.residual,
    "speech": speech_digits.study,
}


def study_of(name: str, seed: int, macs: float | None = None) -> StudySpec:
    """Return a study of top-1 against bit operations.

    Parameters
    ----------
    name
        One of `STUDIES`.
    seed
        The base seed.
    macs
        The largest share of the teacher's multiply-adds; None for no limit.
    """
    spec = STUDIES[name]()
    inputs = spec.splits.validation.inputs
    cost = Macs(inputs)
    limits = () if macs is None else (Limit(cost, at_most=macs * cost(spec.teacher)),)
    return replace(spec, seed=seed, objectives=(spec.objectives[0], Bops(inputs)), reported=(), limits=limits)
