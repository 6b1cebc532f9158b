"""Optuna's storage in a database, and its cache, for long studies and many workers.

The tables are Optuna's. What differs is how often and how much of them is read: of a trial only what is new, of the
trials that run only whether they still do, and their attributes every few seconds; and that the parameters of a trial
are written together.
"""

from __future__ import annotations

import copy
import json
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.distributions import check_distribution_compatibility, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from optuna.distributions import BaseDistribution
    from sqlalchemy.orm import Session

# seconds after which the attributes of other workers' running trials are read again: at least, and at most, which is
# the time between two pulses of a worker; for each of many trials a little longer (chosen)
ATTRIBUTES_EVERY, LONGEST_OLD, LONGER_FOR_EACH = 2.0, 15.0, 0.02
IDS_NAMED = 500  # trials that a query names one by one (chosen)


class QuickRDB(RDBStorage):
    """Optuna's storage in a database, with operations on several parameters or trials at once."""

    def _set_trial_params(self, trial_id: int, params: list[tuple[str, float, str]]) -> None:
        """Add parameters to a trial: names, internal values and distributions; those that are there already stay."""
        with _create_scoped_session(self.scoped_session) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
            self.check_trial_is_updatable(trial_id, trial.state)  # type: ignore[arg-type]  # a column, and its value
            table = models.TrialParamModel
            known = set(
                session.execute(sqlalchemy.select(table.param_name).where(table.trial_id == trial_id)).scalars()
            )
            rows = [
                {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": text}
                for name, value, text in params
                if name not in known
            ]
            if rows:
                session.execute(sqlalchemy.insert(table), rows)

    def _states_after(self, study_id: int, known: set[int], last: int) -> list[tuple[int, TrialState]]:
        """Return the states of known trials, and of all with an id above the last one, by id."""
        table = models.TrialModel
        with _create_scoped_session(self.scoped_session) as session:
            models.StudyModel.find_or_raise_by_id(study_id, session)
            query = sqlalchemy.select(table.trial_id, table.state).where(table.study_id == study_id)
            rows: list[tuple[int, TrialState]] = []
            for ids in [*_parts([one for one in known if one <= last]), None]:
                chosen = table.trial_id > last if ids is None else table.trial_id.in_(ids)
                rows += [(trial_id, state) for trial_id, state in session.execute(query.where(chosen))]
        return sorted(rows)

    def _load_trials(self, study_id: int, wanted: set[int]) -> list[FrozenTrial]:
        """Return trials of a study by their ids."""
        found: list[FrozenTrial] = []
        with _create_scoped_session(self.scoped_session) as session:
            if len(wanted) > IDS_NAMED:
                between = models.TrialModel.trial_id.between(min(wanted), max(wanted))
                found += [trial for trial in self._loaded(session, study_id, between) if trial._trial_id in wanted]  # noqa: SLF001
            else:
                for ids in _parts(sorted(wanted)):
                    found += self._loaded(session, study_id, models.TrialModel.trial_id.in_(ids))
        return found

    def _loaded(self, session: Session, study_id: int, chosen: sqlalchemy.ColumnElement[bool]) -> list[FrozenTrial]:
        """Return the trials of a study for which a condition holds."""
        table, columns = models.TrialModel, models.TrialModel.__table__.c
        query = sqlalchemy.select(
            table.trial_id, table.number, table.state, columns.datetime_start, columns.datetime_complete
        ).where(table.study_id == study_id, chosen)
        trials = {
            at: FrozenTrial(number, state, None, _local(start), _local(end), {}, {}, {}, {}, {}, at)
            for at, number, state, start, end in session.execute(query.order_by(table.trial_id))
        }

        def rows(model: Any, order: Any, *columns: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - of SQLAlchemy
            """Yield the rows of a table, each with its trial; one that was created meanwhile is not among them."""
            query = sqlalchemy.select(model.trial_id, *columns).join(table).where(table.study_id == study_id, chosen)
            for at, *row in session.execute(query.order_by(order)):
                if at in trials:
                    yield trials[at], *row

        model: Any = models.TrialParamModel
        for trial, name, number, text in rows(
            model, model.param_id, model.param_name, model.param_value, model.distribution_json
        ):
            distribution = self._distribution(text)
            trial.params[sys.intern(name)] = distribution.to_external_repr(number)
            trial.distributions[sys.intern(name)] = distribution
        model = models.TrialValueModel
        for trial, *stored in rows(model, model.objective, model.value, model.value_type):
            trial.values = [*(trial.values or ()), model.stored_repr_to_value(*stored)]
        for model, name in (
            (models.TrialUserAttributeModel, "user_attrs"),
            (models.TrialSystemAttributeModel, "system_attrs"),
        ):
            for trial, key, text in rows(model, next(iter(model.__table__.primary_key)), model.key, model.value_json):
                getattr(trial, name)[sys.intern(key)] = json.loads(text)
        model = models.TrialIntermediateValueModel
        kind = model.intermediate_value, model.intermediate_value_type
        for trial, step, *stored in rows(model, model.trial_intermediate_value_id, model.step, *kind):
            trial.intermediate_values[step] = model.stored_repr_to_intermediate_value(*stored)
        shared: dict[tuple[tuple[str, ...], tuple[int, ...]], dict[str, BaseDistribution]] = {}
        for trial in trials.values():
            same = tuple(trial.distributions), tuple(map(id, trial.distributions.values()))
            trial._distributions = shared.setdefault(same, trial.distributions)  # noqa: SLF001
        return list(trials.values())

    def _distribution(self, text: str) -> BaseDistribution:
        """Return a distribution; equal ones are kept once."""
        known: dict[str, BaseDistribution] = vars(self).setdefault("_distributions", {})
        if text not in known:
            known[text] = json_to_distribution(text)
        return known[text]


class QuickCache(_CachedStorage):
    """Optuna's cache of a database, which keeps the trials of a study in a list.

    Parameters
    ----------
    backend
        The database.
    """

    def __init__(self, backend: QuickRDB) -> None:
        super().__init__(backend)
        self._lists: dict[int, list[FrozenTrial | None]] = {}  # by number; None of those that are not read yet
        self._open: dict[int, set[int]] = {}  # numbers of the trials of each study that have not finished
        self._refreshed: dict[int, float] = {}  # since when the attributes of each study's running trials are known
        self._written: set[int] = set()  # trials that this process has written to
        self._drawn = threading.local()  # parameters of a trial that this thread has not written yet

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter; it is written with all others of its trial, before anything else of the trial is."""
        with self._lock:
            study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
            known = self._studies[study_id].param_distribution.get(param_name)
        if known is None:  # Optuna's storage looks for another one
            self._write_drawn()
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            self._written.add(trial_id)
            return
        check_distribution_compatibility(known, distribution)
        drawn = vars(self._drawn).setdefault("params", [])
        if drawn and drawn[0][0] != trial_id:
            self._write_drawn()
            drawn = vars(self._drawn).setdefault("params", [])
        drawn.append((trial_id, param_name, param_value_internal, distribution_to_json(distribution)))

    def _write_drawn(self) -> None:
        drawn = vars(self._drawn).pop("params", [])
        if drawn:
            self._written.add(drawn[0][0])
            self._backend._set_trial_params(drawn[0][0], [param for _, *param in drawn])  # type: ignore[attr-defined]  # noqa: SLF001

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:  # noqa: ANN401 - Optuna's
        """Set the state of a trial, and the values of a complete one."""
        self._write_drawn()
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set a value of a trial under way."""
        self._write_drawn()
        self._written.add(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Set an attribute of a trial."""
        self._write_drawn()
        self._written.add(trial_id)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Set an attribute of a trial that Optuna reads."""
        self._write_drawn()
        self._written.add(trial_id)
        super().set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        self._write_drawn()
        return super().get_trial(trial_id)

    def remove_session(self) -> None:
        """Write what is not written yet."""
        self._write_drawn()
        self._backend.remove_session()

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""
        super().delete_study(study_id)
        with self._lock:
            for kept in (self._lists, self._open, self._refreshed):
                kept.pop(study_id, None)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study in these states, by number."""
        self._write_drawn()
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            trials = self._lists.get(study_id, [])
            if states is not None and not any(state in states for state in TrialState if state.is_finished()):
                found = [trials[at] for at in sorted(self._open.get(study_id, ()))]
            else:
                found = list(trials)
        chosen = [trial for trial in found if trial is not None and (states is None or trial.state in states)]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        with self._lock:
            study = self._studies.setdefault(study_id, _StudyInfo())
            rows = self._backend._states_after(study_id, study.unfinished_trial_ids, study.last_finished_trial_id)  # type: ignore[attr-defined]  # noqa: SLF001
            now = time.monotonic()
            old = min(ATTRIBUTES_EVERY + LONGER_FOR_EACH * len(study.unfinished_trial_ids), LONGEST_OLD)
            again = now - self._refreshed.get(study_id, 0.0) > old
            wanted = {trial_id for trial_id, state in rows if self._is_news(trial_id, state, again=again)}
            if again:
                self._refreshed[study_id] = now
            if wanted:
                self._add_trials_to_cache(study_id, self._backend._load_trials(study_id, wanted))  # type: ignore[attr-defined]  # noqa: SLF001
                self._written -= wanted
            for trial_id, _ in rows:
                _, number = self._trial_id_to_study_id_and_number[trial_id]
                if study.trials[number].state.is_finished():
                    study.unfinished_trial_ids.discard(trial_id)
                    study.last_finished_trial_id = max(study.last_finished_trial_id, trial_id)
                else:
                    study.unfinished_trial_ids.add(trial_id)

    def _is_news(self, trial_id: int, state: TrialState, *, again: bool) -> bool:
        """Return whether a trial is to be read: it is new, its state is, or its attributes may be."""
        at = self._trial_id_to_study_id_and_number.get(trial_id)
        if at is None:
            return True
        known = self._studies[at[0]].trials[at[1]].state
        return known != state or (not state.is_finished() and (again or trial_id in self._written))

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        super()._add_trials_to_cache(study_id, trials)
        listed, unfinished = self._lists.setdefault(study_id, []), self._open.setdefault(study_id, set())
        first = self._studies[study_id].param_distribution
        for trial in trials:
            listed += [None] * (trial.number + 1 - len(listed))
            listed[trial.number] = trial
            (unfinished.discard if trial.state.is_finished() else unfinished.add)(trial.number)
            if trial.distributions.keys() - first.keys():
                for name, distribution in trial.distributions.items():
                    first.setdefault(name, distribution)


def _local(time_: datetime | None) -> datetime | None:
    """Return the local time of a stored one, which is UTC, both without a zone."""
    return None if time_ is None else time_.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _parts(ids: list[int]) -> Iterator[list[int]]:
    """Yield the ids in lists that a query can name."""
    for start in range(0, len(ids), IDS_NAMED):
        yield ids[start : start + IDS_NAMED]
