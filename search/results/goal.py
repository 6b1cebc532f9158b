"""How the members of a front meet the limits and the goal of a study, measured on their files where these exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from objectives.objective import in_digits
from search.results.file_records import LATENCY, SHARE, SIZE, file_value, measuring_runtime
from search.study.attributes import numbers_of
from search.study.records import EXCESS, TEACHER, VALUES
from search.study.unmet import known_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial

    from objectives import Limit
    from search.results.file_records import Member
    from search.study.outline import Outline


class Standing(NamedTuple):
    """How one member stands to one limit.

    Attributes
    ----------
    limit
        The limit, with its bound where the member was measured.
    value
        The value of the member, on its file if the file measures the objective.
    used
        The share of what the limit allows that the member uses: at most 1 where the limit holds. Of an objective that
        depends on training this is the loss over the loss that is allowed, of a cost the cost over its bound.
    """

    limit: Limit
    value: float
    used: float


def standings(study: Study, spec: Outline, member: Member) -> list[Standing]:
    """Return how a member stands to every limit of the study."""
    teacher = study.user_attrs.get(TEACHER, {})
    found = []
    for limit in known_limits(study, spec):
        name = limit.objective.name
        if limit.is_relative and limit.teacher is None:
            continue
        measured = _on_file(limit, member, spec)
        bounded, value = measured or (limit, numbers_of(member.trial, VALUES)[name])
        found.append(Standing(bounded, value, _used(bounded, value, teacher.get(name))))
    return found


def meets_all(found: Sequence[Standing]) -> bool:
    """Whether all limits hold."""
    return all(standing.limit.excess(standing.value) <= 0 for standing in found)


def best_for_goal(study: Study, spec: Outline, members: Sequence[Member]) -> Member:
    """Return the member that meets the limits best: the most used limit is used as little as possible, then the next.

    A member whose file is verified comes before one whose file is not.
    """

    def order(member: Member) -> tuple[bool, list[float]]:
        return not member.record, sorted((standing.used for standing in standings(study, spec, member)), reverse=True)

    return min(members, key=order)


def relative_columns(study: Study, spec: Outline, trial: FrozenTrial | None) -> dict[str, float | None]:
    """Return the values of the limits that are relative to the teacher, in their terms; of the teacher for None.

    `<objective>_of_teacher` is the share of the teacher's value, `<objective>_lost` by how much the value is worse.
    """
    found: dict[str, float | None] = {}
    for limit in known_limits(study, spec):
        name = limit.objective.name
        sign = 1 if limit.is_upper else -1
        if limit.of_teacher is not None:
            # from the excess, because the machine that measured the trial may not be that of the stored teacher
            excess = None if trial is None else numbers_of(trial, EXCESS).get(str(limit))
            share = None if excess is None else limit.of_teacher * (1 + sign * excess)
            found[f"{name}_of_teacher"] = 1.0 if trial is None else share
        elif limit.teacher is not None and limit.is_relative:
            lost = 0.0 if trial is None else sign * (numbers_of(trial, VALUES)[name] - limit.teacher)
            found[f"{name}_lost"] = lost + 0.0  # not -0
    return found


def goal_note(study: Study, spec: Outline, members: Sequence[Member]) -> str:
    """Describe which members meet the goal, and how the best of them stands to every limit; empty without a goal."""
    if not spec.goal or not members:
        return ""
    meeting = [str(member.trial.number) for member in members if meets_all(standings(study, spec, member))]
    best = best_for_goal(study, spec, members)
    where = "its file" if best.record else "the network in torch; no file is verified yet"
    trials = f"trial{'s' if len(meeting) > 1 else ''} {', '.join(meeting)}"
    met = f"met by {trials}; best" if meeting else "not met by any file; nearest"
    shown = ", ".join(
        f"{standing.limit.objective.name} {in_digits(standing.value)} (limit: {standing.limit.words})"
        for standing in standings(study, spec, best)
    )
    return f"goal {spec.goal!r}: {met} is trial {best.trial.number} ({where}): {shown}"


def _on_file(limit: Limit, member: Member, spec: Outline) -> tuple[Limit, float] | None:
    """Return the limit and the value on the file of a member, None if its file does not measure the objective."""
    objective, record = limit.objective, member.record
    if not record:
        return None
    if objective.is_cost and measuring_runtime(objective) != spec.runtime:
        return None
    value = file_value(record, member.trial, objective)
    if objective.name == SIZE:
        return limit.against(record["teacher_file_bytes"]), value
    if objective.name == LATENCY:
        return limit.against(record["latency"]["cpu_ms"] / record["latency"]["ratio"]), value
    return (limit.against(1.0) if objective.name == SHARE else limit), value


def _used(limit: Limit, value: float, teacher: float | None) -> float:
    """Return the share of what a limit allows that a value uses."""
    depends_on_training = not limit.objective.is_cost or limit.lose_at_most is not None
    if depends_on_training and teacher is not None and teacher != limit.bound and limit.excess(teacher) < 0:
        return (value - teacher) / (limit.bound - teacher)
    return 1 + limit.excess(value)
