"""Limits that are not met: the best value for each, the limit that binds, and what would be enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from objectives.objective import in_digits
from search.study.attributes import numbers_of
from search.study.errors import LimitsUnmet
from search.study.records import EXCESS, TEACHER, VALUES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from objectives import Limit
    from search.study.outline import Outline


class Candidate(NamedTuple):
    """A plan or a trial that may meet the limits.

    Attributes
    ----------
    name
        What it is called in messages.
    values
        Its values, by objective.
    excess
        By how much it exceeds each limit that is known for it, by the text of the limit.
    """

    name: str
    values: Mapping[str, float]
    excess: Mapping[str, float]


class Shortfall(NamedTuple):
    """What keeps the candidates from meeting all limits.

    Attributes
    ----------
    best
        For each limit that is known for a candidate, the candidate with the best value.
    nearest
        The candidate whose largest excess is the smallest.
    binding
        The limit that binds: if it is loosened alone, by as little as possible, a candidate meets all limits; if no
        single limit is enough, the limit that is missed by most.
    enough
        The candidate that then meets all limits, None if no single limit is enough.
    """

    best: dict[Limit, Candidate]
    nearest: Candidate
    binding: Limit
    enough: Candidate | None


def shortfall(limits: Sequence[Limit], candidates: Sequence[Candidate]) -> Shortfall:
    """Return what keeps these candidates from meeting all limits.

    Parameters
    ----------
    limits
        The limits, with their bounds.
    candidates
        At least one exceeds a limit; those that exceed none were not measured against all limits.
    """
    missing = [candidate for candidate in candidates if max(candidate.excess.values()) > 0]
    measured = max(len(candidate.excess) for candidate in missing)
    whole = [candidate for candidate in missing if len(candidate.excess) == measured]
    best = {
        limit: min(known, key=lambda candidate: candidate.excess[str(limit)])
        for limit in limits
        if (known := [candidate for candidate in candidates if str(limit) in candidate.excess])
    }
    single = []
    for limit in best:
        for candidate in whole:
            exceeded = {name for name, excess in candidate.excess.items() if excess > 0}
            if exceeded == {str(limit)}:
                single.append((candidate.excess[str(limit)], limit, candidate))
    nearest = min(whole, key=lambda candidate: max(candidate.excess.values()))
    if single:
        _, binding, enough = min(single, key=lambda item: item[0])
        return Shortfall(best, enough, binding, enough)
    alone = {limit: candidate.excess[str(limit)] for limit, candidate in best.items()}
    missed = alone if max(alone.values()) > 0 else {limit: nearest.excess[str(limit)] for limit in best}
    return Shortfall(best, nearest, max(missed, key=lambda limit: missed[limit]), None)


def details(found: Shortfall, candidates: Sequence[Candidate]) -> list[str]:
    """Return a line for each limit: its best value, who has it, and how many candidates meet it."""
    lines = []
    for limit, candidate in found.best.items():
        excess, name = candidate.excess[str(limit)], limit.objective.name
        known = [one.excess[str(limit)] for one in candidates if str(limit) in one.excess]
        by = f"{excess:.1%}" if excess < 1 else f"a factor of {1 + excess:,.3g}"
        missed = f"missed by {by}" if excess > 0 else f"met by {sum(one <= 0 for one in known)} of {len(known)}"
        lines.append(
            f"limit {limit.words}: {missed}; the best value is {in_digits(candidate.values[name])}, {candidate.name}"
        )
    return lines


def loosened(limit: Limit, value: float) -> str:
    """Return by how much to loosen a limit so that a value meets it, in the terms in which it was given."""
    if limit.of_teacher is not None and limit.teacher is not None:
        smaller = limit.is_upper and 0 < value < limit.teacher
        times = f" ({limit.teacher / value:.3g} times less)" if smaller else ""
        return f"{in_digits(value)}, {value / limit.teacher:.4g} of the teacher's{times}"
    if limit.lose_at_most is not None and limit.teacher is not None:
        return f"{in_digits(value)}, a loss of {abs(value - limit.teacher):.4g}"
    return f"{value:.10g}"


def known_limits(study: Study, spec: Outline) -> list[Limit]:
    """Return the limits with the values of the teacher that are stored in the study, for texts."""
    teacher = study.user_attrs.get(TEACHER, {})
    return [
        limit.against(teacher[limit.objective.name]) if limit.objective.name in teacher else limit
        for limit in spec.limits
    ]


def no_candidate(study: Study, spec: Outline, finished: Sequence[FrozenTrial]) -> LimitsUnmet:
    """Return the error that no finished trial meets all limits.

    Parameters
    ----------
    study, spec
        The study.
    finished
        Its trials that were compared with limits; at least one exceeds a limit.
    """
    limits = known_limits(study, spec)
    candidates = [
        Candidate(f"of trial {trial.number}", numbers_of(trial, VALUES), numbers_of(trial, EXCESS))
        for trial in finished
    ]
    found = shortfall(limits, candidates)
    name = found.binding.objective.name
    value, excess = found.nearest.values[name], found.nearest.excess[str(found.binding)]
    others = [limit.words for limit in found.best if found.nearest.excess.get(str(limit), 0.0) > 0]
    if found.enough is not None:
        way_out = f"loosen only this limit, to {loosened(found.binding, value)}, or run the study for longer"
    else:
        way_out = f"it misses {' and '.join(others)}; loosen these limits or run the study for longer"
    longer = "" if found.binding.objective.is_cost else ", or start one with more epochs"
    return LimitsUnmet(
        f"no candidate meets all limits; the nearest, {found.nearest.name.removeprefix('of ')}, misses "
        f"{found.binding.words} by {excess:.1%} ({name} {in_digits(value)}); {way_out}{longer}",
        details(found, candidates),
    )
