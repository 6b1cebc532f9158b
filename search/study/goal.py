"""The goal of a study: limits in words, such as "4x smaller, 2x faster, lose at most 1 point"."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from objectives import (
    ArenaBytes,
    Bops,
    FrameTime,
    Latency,
    LatencyShare,
    Limit,
    Macs,
    Parameters,
    SizeBytes,
    Top1,
    TopK,
)
from objectives.arena import HasArena
from objectives.objective import in_digits
from objectives.runtimes import named
from objectives.runtimes.names import name_of
from search.study.errors import UserError
from search.study.goal_phrases import wishes
from search.study.records import GOAL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from optuna import Study

    from objectives import Objective
    from search.study.goal_phrases import Wish
    from search.study.spec import StudySpec

TIMED_FRAMES = 256  # most frames that are timed (chosen)
KINDS_OF_OBJECTIVES = {
    "size": SizeBytes,
    "arena": ArenaBytes,
    "macs": Macs,
    "flops": Macs,
    "bops": Bops,
    "parameters": Parameters,
    "frames": FrameTime,
}


def with_goal(spec: StudySpec) -> StudySpec:
    """Return the study with the limits of its goal; the objectives that they need are then measured too.

    Raises
    ------
    UserError
        If the goal cannot be read, or does not fit the objectives of the study.
    """
    own = {str(limit) for limit in spec.limits}
    new = {str(limit): limit for _, limit in limits_of_goal(spec) if str(limit) not in own}
    return replace(spec, limits=(*spec.limits, *new.values()))


def limits_of_goal(spec: StudySpec) -> list[tuple[str, Limit]]:
    """Return each phrase of the goal with its limit; empty without a goal.

    A limit is on an objective that the study measures, if there is one of that kind, else on a new one: sizes and times
    are those of files for the study's runtime, times those of one validation example. What is lost is the first of the
    study's objectives that depends on training.

    Raises
    ------
    UserError
        If the goal cannot be read, or does not fit the objectives of the study.
    """
    if not spec.goal:
        return []
    found: list[tuple[str, Limit]] = []
    said = wishes(spec.goal, spec.measured)
    in_milliseconds = any(wish.quantity == "latency" and wish.relation == "at_most" for wish in said)
    for wish in said:
        objective = _objective(wish, spec, [limit.objective for _, limit in found], in_milliseconds=in_milliseconds)
        try:
            found.append((wish.phrase, _limit(wish, objective)))
        except UserError as error:
            raise UserError(f"{wish.phrase!r} does not fit this study: {error}") from error
    return found


def measured_for_goal(spec: StudySpec) -> list[str]:
    """Return the names of the objectives that are measured only because the goal limits them."""
    of_goal = {str(limit) for _, limit in limits_of_goal(spec)}
    own = [limit.objective for limit in spec.limits if str(limit) not in of_goal]
    names = {objective.name for objective in (*spec.objectives, *own, *spec.reported)}
    return [objective.name for objective in spec.measured if objective.name not in names]


def beyond_teacher(limits: Sequence[Limit], teacher: Mapping[str, float]) -> list[str]:
    """Return a line for each limit on a metric that the teacher itself does not meet, by its values.

    Parameters
    ----------
    limits
        The limits, with their bounds.
    teacher
        The teacher's value of each objective.
    """
    return [
        f"the teacher itself does not meet {limit.words}: its {limit.objective.name} is "
        f"{in_digits(teacher[limit.objective.name])}, so a candidate must become better than it by its training"
        for limit in limits
        if not limit.objective.is_cost and limit.excess(teacher[limit.objective.name]) > 0
    ]


def with_stored_goal(study: Study, spec: StudySpec) -> StudySpec:
    """Return the study's specification with the goal that it was started with, unless it has a goal of its own."""
    stored = study.user_attrs.get(GOAL)
    if spec.goal or not stored:
        return spec
    try:
        runtime = spec.runtime if name_of(spec.runtime) == stored["runtime"] else named(stored["runtime"])
    except ValueError as error:
        raise UserError(f"the goal of the study is for another runtime: {error}") from error
    return replace(with_goal(replace(spec, goal=stored["text"], runtime=runtime)), runtime=spec.runtime)


def _objective(wish: Wish, spec: StudySpec, earlier: list[Objective], *, in_milliseconds: bool) -> Objective:
    """Return the objective that a wish is about, of the study or of an earlier phrase; a new one if there is none."""
    known = [*spec.measured, *earlier]
    validation = spec.splits.validation
    if wish.quantity == "metric" or (wish.quantity == "top1" and all(one.name != "top1" for one in known)):
        return _metric(wish, spec, known)
    if wish.quantity == "latency":
        latency = next((one for one in known if isinstance(one, Latency)), None)
        share = next((one for one in known if isinstance(one, LatencyShare)), None)
        if latency is None and share is not None and not in_milliseconds:
            return share
        new = share.latency if share is not None else Latency(spec.runtime, spec.teacher, validation.example())
        return latency or (new if in_milliseconds else LatencyShare(new))
    if wish.quantity not in KINDS_OF_OBJECTIVES:
        return next(one for one in known if one.name == wish.quantity)
    kind = KINDS_OF_OBJECTIVES[wish.quantity]
    same = [one for one in known if isinstance(one, kind)]
    on_runtime = [one for one in same if getattr(one, "runtime", spec.runtime) == spec.runtime]
    if same:
        return (on_runtime or same)[0]
    new_objectives: dict[type, Callable[[], Objective]] = {  # functions, since a stream reads its examples for them
        SizeBytes: lambda: SizeBytes(spec.runtime),
        ArenaBytes: lambda: _arena(wish, spec),
        Macs: lambda: Macs(validation.example()),
        Bops: lambda: Bops(validation.example()),
        Parameters: Parameters,
        FrameTime: lambda: FrameTime(spec.runtime, validation.example(TIMED_FRAMES)),
    }
    return new_objectives[kind]()


def _arena(wish: Wish, spec: StudySpec) -> ArenaBytes:
    """Return the objective that measures RAM."""
    if not isinstance(spec.runtime, HasArena):
        raise UserError(
            f"{wish.phrase!r} needs a runtime that tells the RAM of a file, which {spec.runtime.name} does not; search "
            "for TFLite Micro: --set runtime=tflite-micro if the study function takes a runtime, else "
            "runtime=TfliteMicro() in it"
        )
    return ArenaBytes(spec.example(), spec.runtime)


def _metric(wish: Wish, spec: StudySpec, known: list[Objective]) -> Objective:
    """Return the metric of a study: its first objective that depends on training, or a new top-1."""
    metrics = [objective for objective in known if not objective.is_cost]
    if wish.relation == "at_least":
        metrics.sort(key=lambda objective: objective.direction != "maximize")  # stable: the first that is maximized
    if metrics and wish.quantity == "top1":
        names = ", ".join(metric.name for metric in metrics)
        raise UserError(f"{wish.phrase!r} needs an objective top1, but what the study measures is {names}; name that")
    if metrics:
        return metrics[0]
    if not spec.splits.validation.classified:
        raise UserError(
            f"{wish.phrase!r} needs an objective that depends on training, but the study has none; add one to reported="
        )
    return Top1(spec.splits.validation)


def _limit(wish: Wish, objective: Objective) -> Limit:
    """Return the limit that a wish puts on an objective.

    Raises
    ------
    UserError
        If the bound is on the wrong side of the objective, or in a unit that it does not have.
    """
    name, relation, number = objective.name, wish.relation, wish.number
    better = "at_most" if objective.direction == "minimize" else "at_least"
    if relation in {"at_most", "at_least"} and relation != better:
        side = "<=" if better == "at_most" else ">="
        raise UserError(f"{name} is to be {objective.direction}d, so say {name}{side}VALUE")
    if wish.unit == "distance" and objective.is_cost:
        first, second = (f"'at most {percent:g}% of the {name}'" for percent in (number, 100 + number))
        raise UserError(f"'within {number:g}%' of a cost can be read in two ways; say {first} or {second}")
    worse = 1 if objective.direction == "minimize" else -1
    if wish.unit == "share" and not objective.is_cost:
        share = 1 + worse * number if relation == "lose_at_most" else number
        if share <= 0:
            raise UserError(f"of {name} less than all can be lost, but {wish.phrase!r} asks for more")
        return Limit(objective, of_teacher=share)
    if _in_percent(objective) and relation == "at_least" and wish.unit != "percent" and 0 < number <= 1:
        raise UserError(f"{name} is in percent, and {wish.phrase!r} is almost nothing; say {100 * number:g}%")
    if wish.quantity == "latency" and relation == "of_teacher" and isinstance(objective, LatencyShare):
        return Limit(objective, at_most=number)
    if objective.is_cost or _in_percent(objective) or wish.unit not in {"percent", "points", "distance"}:
        return Limit(objective, **{relation: number})
    if wish.unit in {"percent", "distance"} and relation == "lose_at_most" and 0 < number < 100:  # noqa: PLR2004
        return Limit(objective, of_teacher=1 + worse * number / 100)
    raise UserError(f"{name} is not in percent, so name the number in its own unit, such as 'lose at most 0.1 {name}'")


def _in_percent(objective: Objective) -> bool:
    """Whether an objective is in percent: names end in the unit, except for top-1 and top-k."""
    return isinstance(objective, Top1 | TopK) or objective.name.endswith("_percent")
