"""Optuna's cache of a database, for long studies and many workers.

What differs is how often and how much is read: of a trial only what is new, of the trials that run only whether they
still do, and their attributes every few seconds, nothing of what this process has written itself; and that the
parameters of a trial are written together.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from optuna.distributions import check_distribution_compatibility, distribution_to_json
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.trial import FrozenTrial, TrialState

from search.study.database_naming import reads_between

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping

    from optuna.distributions import BaseDistribution

    from search.study.database_rows import QuickRDB

# seconds after which the attributes of other workers' running trials are read again: at least, and at most, which is
# the time between two pulses of a worker; for each of many trials a little longer (chosen)
ATTRIBUTES_EVERY, LONGEST_OLD, LONGER_FOR_EACH = 2.0, 15.0, 0.02
LOOKED_SECONDS = 0.1  # what was read of a study's trials is not read again, unless there are news of any kind (chosen)


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
        self._written: set[int] = set()  # trials to which this process has written what is not read yet
        self._drawn = threading.local()  # parameters of a trial that this thread has not written yet
        self._shared: dict[tuple[tuple[str, str], ...], dict[str, BaseDistribution]] = {}  # of trials of this process
        # the latest news of any study, and for each study when its trials were read, and after which news: who knows
        # what another worker did last, in whichever study, must not see what was before that
        self._numbers = itertools.count(1)
        self._news, self._looked = 0, dict[int, tuple[float, int]]()
        self._own: set[int] = set()  # trials of which the latest state is news to other processes alone
        self._mine: set[int] = set()  # trials that this process runs, to which no other one writes

    def _tell_news(self) -> None:
        self._news = next(self._numbers)  # each once, whichever threads tell news

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Create a trial; return its id."""
        created = super().create_new_trial(study_id, template_trial)
        self._tell_news()
        if template_trial is None or template_trial.state == TrialState.RUNNING:
            self._mine.add(created)
        return created

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
        drawn.append((trial_id, param_name, param_value_internal, distribution))

    def _write_drawn(self) -> None:
        drawn = vars(self._drawn).pop("params", [])
        if not drawn:
            return
        trial_id, *_ = drawn[0]
        texts = [
            (sys.intern(name), value, distribution_to_json(distribution)) for _, name, value, distribution in drawn
        ]
        key = tuple((name, text) for name, _, text in texts)

        def add(trial: FrozenTrial) -> None:
            distributions = {name: one for (name, _), (*_, one) in zip(key, drawn, strict=True)}
            new = {name: distributions[name].to_external_repr(value) for name, value, _ in texts}
            trial.params = trial.params | new | trial.params  # the first value of a parameter stays
            shared = self._shared.setdefault(key, distributions)
            before = trial.distributions
            trial._distributions = before | shared | before if before else shared  # noqa: SLF001

        with self._writing(trial_id, add):
            self._backend._set_trial_params(trial_id, texts)  # type: ignore[attr-defined]  # noqa: SLF001

    @contextlib.contextmanager
    def _writing(self, trial_id: int, change: Callable[[FrozenTrial], None]) -> Iterator[None]:
        """Write a change of a trial, which is kept, too, if nothing else of the trial is still to be read."""
        whole = trial_id not in self._written
        self._written.add(trial_id)  # now: what fails may have been written
        yield
        with self._lock:
            known = self._known(trial_id)
            study_id, _ = self._trial_id_to_study_id_and_number.get(trial_id, (-1, -1))
            ended = trial_id in self._unread.get(study_id, {})  # by another process, in the meantime
            if whole and known is not None and not ended:
                changed = copy.copy(known)  # readers may have the known one
                change(changed)
                self._add_trials_to_cache(study_id, [changed])
                self._written.discard(trial_id)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:  # noqa: ANN401 - Optuna's
        """Set the state of a trial, and the values of a complete one."""
        self._write_drawn()
        self._own.add(trial_id)  # now: another thread may look as soon as it is written
        done = False
        try:
            done = super().set_trial_state_values(trial_id, state, values)
        finally:
            if not done:
                self._own.discard(trial_id)
            self._tell_news()
        if done and state == TrialState.RUNNING:
            self._mine.add(trial_id)
        return done

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set a value of a trial under way."""
        self._write_drawn()
        self._written.add(trial_id)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Set an attribute of a trial."""
        self.set_trial_user_attrs(trial_id, {key: value})

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial."""
        self._write_drawn()
        stored = json.loads(json.dumps(dict(attributes)))

        def add(trial: FrozenTrial) -> None:
            trial.user_attrs = trial.user_attrs | stored

        with self._writing(trial_id, add):
            self._backend._set_trial_user_attrs(trial_id, attributes)  # type: ignore[attr-defined]  # noqa: SLF001

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Set an attribute of a trial that Optuna reads."""
        self._write_drawn()
        stored = json.loads(json.dumps(value))

        def add(trial: FrozenTrial) -> None:
            trial.system_attrs = trial.system_attrs | {key: stored}

        with self._writing(trial_id, add):
            super().set_trial_system_attr(trial_id, key, value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial."""
        self._write_drawn()
        if trial_id in self._mine:
            study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
            self._read_trials_from_remote_storage(study_id)
            with self._lock:
                known = self._known(trial_id)
                if known is not None and trial_id not in self._written:
                    return known if known.state.is_finished() else copy.deepcopy(known)
        return super().get_trial(trial_id)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of a study, which may tell what another worker did before it set them."""
        found = super().get_study_user_attrs(study_id)
        self._tell_news()
        return found

    def remove_session(self) -> None:
        """Write what is not written yet."""
        self._write_drawn()
        self._backend.remove_session()

    def delete_study(self, study_id: int) -> None:
        """Delete a study."""
        super().delete_study(study_id)
        with self._lock:
            ids = {trial._trial_id for trial in self._lists.get(study_id, ()) if trial is not None}  # noqa: SLF001
            for several in (self._mine, self._own, self._written):  # SQLite gives an id again
                several.difference_update(ids)
            for kept in (self._lists, self._open, self._waiting, self._refreshed, self._unread, self._looked):
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
            now, news_now = time.monotonic(), self._news  # another thread may write meanwhile
            rows: list[tuple[int, TrialState]] = []
            looked, heard = self._looked.get(study_id, (-math.inf, 0))
            looks = now - looked > LOOKED_SECONDS or heard != news_now
            if looks:
                rows = self._backend._states_after(study_id, unfinished, waiting, study.last_finished_trial_id)  # type: ignore[attr-defined]  # noqa: SLF001
                if any(self._is_news(*row) and row[0] not in self._own for row in rows):
                    self._tell_news()
                self._own -= {trial_id for trial_id, _ in rows}
            old = min(ATTRIBUTES_EVERY + LONGER_FOR_EACH * len(unfinished), LONGEST_OLD)
            news = {trial_id: state for trial_id, state in rows if self._is_news(trial_id, state)}
            live = unfinished | {trial_id for trial_id, state in rows if not state.is_finished()}
            again = self._written & live
            if now - self._refreshed.get(study_id, 0.0) > old:
                self._refreshed[study_id] = now
                again = live
            finished = {trial_id: state for trial_id, state in news.items() if state.is_finished()}
            self._forget(study_id, finished)
            self._mine.difference_update(finished)
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
            if looks:
                self._looked[study_id] = now, news_now  # only now: what fails did not look

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
