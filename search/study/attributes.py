"""What a trial records under many names, as attributes that are scalars: Optuna's tables have a column for each.

Numbers that belong together, such as the measured values of all objectives, have a prefix and a name each, as in
`measured:top1`. What only slimfront reads is one JSON text. Version 0.1 and early checkouts of 0.2 stored both as
dicts; these are read, too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from search.study.records import EARLY_CHECK, EXCESS, PREDICTED, SHORT_TRAINING, VALUES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna import Trial
    from optuna.trial import FrozenTrial

EARLIER_NAMES = {
    VALUES: "measured",
    EXCESS: "excess",
    PREDICTED: "told_about",
    EARLY_CHECK: "rung",
    SHORT_TRAINING: "mended",
}
CONSTRAINTS = "constraints"  # the system attribute that Optuna's samplers and dashboard read


@runtime_checkable
class TogetherStorage(Protocol):
    """A storage of Optuna that writes several attributes of a trial at once."""

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial."""


def keyed(prefix: str, numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the attributes that hold numbers: one for each, its name behind the prefix."""
    return {f"{prefix}{name}": number for name, number in numbers.items()}


def put(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Record attributes of a trial, in one write where the storage can; those that it has already are not written."""
    known, storage = trial.user_attrs, trial.storage
    new = {key: value for key, value in attributes.items() if key not in known or known[key] != value}
    if new and isinstance(storage, TogetherStorage):
        storage.set_trial_user_attrs(trial._trial_id, new)  # noqa: SLF001 - as Optuna does
        trial._cached_frozen_trial.user_attrs |= new  # noqa: SLF001 - the same
        return
    for key, value in new.items():
        trial.set_user_attr(key, value)


def put_numbers(trial: Trial, prefix: str, numbers: Mapping[str, float]) -> None:
    """Record numbers in a trial, each as an attribute."""
    put(trial, keyed(prefix, numbers))


def numbers_of(trial: Trial | FrozenTrial, prefix: str) -> dict[str, float]:
    """Return the numbers that a trial has under a prefix, by name; none if it has none."""
    attributes = trial.user_attrs
    earlier: dict[str, float] = attributes.get(EARLIER_NAMES[prefix], {})
    return earlier or {key[len(prefix) :]: value for key, value in attributes.items() if key.startswith(prefix)}


def put_content(trial: Trial, name: str, content: Any) -> None:  # noqa: ANN401 - JSON
    """Record what only slimfront reads in a trial, as a JSON text: other workers see all of it or nothing."""
    trial.set_user_attr(name, json.dumps(content))


def content_of(trial: Trial | FrozenTrial, name: str) -> Any:  # noqa: ANN401 - JSON
    """Return what `put_content` recorded, None if there is nothing."""
    known = known_name(trial, name)
    found = trial.user_attrs[known] if known else None
    return json.loads(found) if isinstance(found, str) else found


def known_name(trial: Trial | FrozenTrial, name: str) -> str:
    """Return the name under which a trial has an attribute, which may be an earlier one; empty if it has none."""
    return next((known for known in (name, EARLIER_NAMES.get(name, name)) if known in trial.user_attrs), "")


def put_constraints(trial: Trial, excess: Iterable[float]) -> None:
    """Record by how much each limit is exceeded, in the order of the limits, as Optuna's feasibility: 0 or less is met.

    It is one list. Optuna 5 also has an attribute for each constraint (`Trial.set_constraint`), which its dashboard
    does not read; with both, its samplers would count every limit twice.
    """
    if values := list(excess):
        trial.storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, values)  # noqa: SLF001 - as Optuna does


def constraints_of(trial: FrozenTrial, limits: Sequence[str]) -> dict[str, float]:
    """Return by how much a trial exceeds each limit, by the limit's text; nothing for a limit that it does not have."""
    found = trial.constraints  # of a list Optuna makes names: the positions
    known = {limit: found.get(limit, found.get(str(at))) for at, limit in enumerate(limits)}
    return {limit: value for limit, value in known.items() if value is not None}
