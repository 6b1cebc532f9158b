"""Optuna's storage in a database, and its cache, for long studies and many workers.

The tables are Optuna's. What differs is how often and how much of them is read: of a trial only what is new, of the
trials that run only whether they still do, and their attributes every few seconds; and that the parameters of a trial
are written together.
"""

from __future__ import annotations

import copy
import threading
import time
from typing import TYPE_CHECKING, Any

from optuna.distributions import check_distribution_compatibility, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState

from search.study.database_naming import reads_between
from search.study.database_reading import created_with, read_trials, require_study, states_after
from search.study.database_writing import INSERTS, add_params, create, is_plain, set_attribute, set_state

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from sqlalchemy import URL

# seconds after which the attributes of other workers' running trials are read again: at least, and at most, which is
# the time between two pulses of a worker; for each of many trials a little longer (chosen)
ATTRIBUTES_EVERY, LONGEST_OLD, LONGER_FOR_EACH = 2.0, 15.0, 0.02


class QuickRDB(RDBStorage):
    """Optuna's storage in a database, which reads many trials, and writes the parameters of one, at once."""

    @classmethod
    def of(cls, url: URL, options: dict[str, Any]) -> QuickRDB:
        """Return the storage of a database, which also writes what else there is if we know how to write to its kind.

        Parameters
        ----------
        url
            The database.
        options
            Further options of SQLAlchemy's engine.
        """
        kind = WritingRDB if url.get_backend_name() in INSERTS else cls
        written = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")  # Optuna: a template
        return kind(written, engine_kwargs=options)

    def _set_trial_params(self, trial_id: int, params: list[tuple[str, float, str]]) -> None:
        """Add parameters to a trial: names, internal values and distributions; those that are there already stay."""
        with self.engine.begin() as connection:
            add_params(connection, trial_id, params)

    def _states_after(
        self, study_id: int, known: set[int], waiting: set[int], last: int
    ) -> list[tuple[int, TrialState]]:
        """Return the new states of known trials, and those of all with an id above the last one, by id."""
        with self.engine.begin() as connection:
            return states_after(connection, study_id, known, waiting, last)

    def _load_trials(self, wanted: set[int], known: Mapping[int, FrozenTrial]) -> list[FrozenTrial]:
        """Return trials by their ids; some of them are known as they were before."""
        with self.engine.begin() as connection:
            return read_trials(connection, wanted, vars(self).setdefault("_distributions", {}), known)

    def _created_with(self, study_id: int, key: str, value: Any) -> FrozenTrial | None:  # noqa: ANN401 - JSON
        """Return the trial of a study that was created with an attribute that Optuna reads, None if there is none."""
        with self.engine.begin() as connection:
            found = created_with(connection, study_id, key, value)
        return None if found is None else self.get_trial(found)

    def delete_study(self, study_id: int) -> None:
        """Delete a study, unless a transaction that is ending does so; that one is waited for."""
        with self.engine.begin() as connection:
            require_study(connection, study_id, lock=True)
        super().delete_study(study_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        for trial in self._load_trials({trial_id}, {}):
            return trial
        raise KeyError(models.NOT_FOUND_MSG)


class WritingRDB(QuickRDB):
    """The same, in which states and attributes take few statements, too."""

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is None or not is_plain(template_trial):
            return super()._create_new_trial(study_id, template_trial)
        with self.engine.begin() as connection:
            return create(connection, study_id, template_trial)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state of a trial, and the values of a complete one; return False if another process has taken it."""
        with self.engine.begin() as connection:
            return set_state(connection, trial_id, state, values)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Set an attribute of a trial."""
        with self.engine.begin() as connection:
            set_attribute(connection, models.TrialUserAttributeModel, trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Set an attribute of a trial that Optuna reads."""
        with self.engine.begin() as connection:
            set_attribute(connection, models.TrialSystemAttributeModel, trial_id, key, value)


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
        self._waiting: dict[int, set[int]] = {}  # ids of those of them that wait
        self._refreshed: dict[int, float] = {}  # since when the attributes of each study's running trials are known
        # finished trials that nobody has asked for yet, by study and id: those of other workers, and all tickets
        self._unread: dict[int, dict[int, TrialState]] = {}
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
            for kept in (self._lists, self._open, self._waiting, self._refreshed, self._unread):
                kept.pop(study_id, None)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study in these states, by number."""
        self._write_drawn()
        self._read_trials_from_remote_storage(study_id, states)
        with self._lock:
            trials = self._lists.get(study_id, [])
            if states is not None and not any(state in states for state in TrialState if state.is_finished()):
                found = [trials[at] for at in sorted(self._open.get(study_id, ()))]
            else:
                found = list(trials)
        chosen = [trial for trial in found if trial is not None and (states is None or trial.state in states)]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def _read_trials_from_remote_storage(self, study_id: int, states: Container[TrialState] | None = None) -> None:
        """Read what is new of the trials; of finished ones only those in these states."""
        with self._lock:
            study = self._studies.setdefault(study_id, _StudyInfo())
            unread = self._unread.setdefault(study_id, {})
            unfinished = study.unfinished_trial_ids
            waiting = self._waiting.setdefault(study_id, set())
            rows = self._backend._states_after(study_id, unfinished, waiting, study.last_finished_trial_id)  # type: ignore[attr-defined]  # noqa: SLF001
            now = time.monotonic()
            old = min(ATTRIBUTES_EVERY + LONGER_FOR_EACH * len(unfinished), LONGEST_OLD)
            news = {trial_id: state for trial_id, state in rows if self._is_news(trial_id, state)}
            live = unfinished | {trial_id for trial_id, state in rows if not state.is_finished()}
            again = self._written & live
            if now - self._refreshed.get(study_id, 0.0) > old:
                self._refreshed[study_id] = now
                again = live
            finished = {trial_id: state for trial_id, state in news.items() if state.is_finished()}
            self._forget(study_id, finished)
            unread |= finished
            wanted = {trial_id for trial_id, state in unread.items() if states is None or state in states}
            if reads_between(self._backend.engine.dialect, len(wanted)):
                wanted |= unread.keys()
            wanted |= (news.keys() | again) - finished.keys()
            if wanted:
                known = {trial_id: trial for trial_id in wanted if (trial := self._known(trial_id)) is not None}
                self._add_trials_to_cache(study_id, self._backend._load_trials(wanted, known))  # type: ignore[attr-defined]  # noqa: SLF001
                self._written -= wanted
            for trial_id in wanted & unread.keys():
                del unread[trial_id]
            for trial_id, state in rows:
                (unfinished.discard if state.is_finished() else unfinished.add)(trial_id)
                # trials of a study appear in the order of their ids; the unfinished ones are asked for by their ids
                study.last_finished_trial_id = max(study.last_finished_trial_id, trial_id)

    def _forget(self, study_id: int, finished: Container[int]) -> None:
        """Take trials that have finished from those of which it was known that they had not."""
        trials, unfinished = self._lists.get(study_id, []), self._open.get(study_id, set())
        for number in list(unfinished):
            trial = trials[number]
            if trial is not None and trial._trial_id in finished:  # noqa: SLF001
                trials[number] = None
                unfinished.discard(number)

    def _known(self, trial_id: int) -> FrozenTrial | None:
        """Return a trial as it was when it was last read; None if it was not."""
        at = self._trial_id_to_study_id_and_number.get(trial_id)
        return None if at is None else self._studies[at[0]].trials.get(at[1])

    def _is_news(self, trial_id: int, state: TrialState) -> bool:
        """Return whether a trial is new, or its state."""
        known = self._known(trial_id)
        return known is None or known.state != state

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        super()._add_trials_to_cache(study_id, trials)
        listed, unfinished = self._lists.setdefault(study_id, []), self._open.setdefault(study_id, set())
        waiting = self._waiting.setdefault(study_id, set())
        first = self._studies[study_id].param_distribution
        for trial in trials:
            listed += [None] * (trial.number + 1 - len(listed))
            listed[trial.number] = trial
            (unfinished.discard if trial.state.is_finished() else unfinished.add)(trial.number)
            (waiting.add if trial.state == TrialState.WAITING else waiting.discard)(trial._trial_id)  # noqa: SLF001
            if trial.distributions.keys() - first.keys():
                for name, distribution in trial.distributions.items():
                    first.setdefault(name, distribution)
