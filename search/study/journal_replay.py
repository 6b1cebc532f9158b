"""What the records of a journal say, in memory: little for each trial, and the trials of a study at hand."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

from optuna.distributions import check_distribution_compatibility, distribution_to_json, json_to_distribution
from optuna.storages.journal._storage import JournalOperation, JournalStorageReplayResult
from optuna.trial import TrialState

from search.study.journal_snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from hashlib import _Hash

    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class Replay(JournalStorageReplayResult):
    """What the records say, with equal distributions kept once, and the trials of each study in a list."""

    def __init__(self, worker_id_prefix: str) -> None:
        super().__init__(worker_id_prefix)
        self._of_study: dict[int, list[FrozenTrial]] = {}
        self._open: dict[int, set[int]] = {}  # numbers of the trials of each study that have not finished
        self._distributions: dict[str, BaseDistribution] = {}
        self._shared: dict[tuple[object, ...], dict[str, BaseDistribution]] = {}
        self._first: dict[tuple[int, str], BaseDistribution] = {}  # of each parameter of each study
        self._own: set[int] = set()  # trials that were copied in this call, so that nobody else has them
        self._usual = {
            int(JournalOperation.SET_TRIAL_PARAM): self._apply_set_trial_param,
            int(JournalOperation.SET_TRIAL_USER_ATTR): self._apply_set_trial_user_attr,
            int(JournalOperation.SET_TRIAL_SYSTEM_ATTR): self._apply_set_trial_system_attr,
        }

    def apply_logs(self, logs: Iterable[dict[str, Any]]) -> None:
        """Apply records."""
        self._own.clear()
        for log in logs:
            usual = self._usual.get(log["op_code"])
            if usual is None:
                super().apply_logs((log,))
            else:
                self.log_number_read += 1
                usual(log)

    def foresee(self, log: dict[str, Any]) -> None:
        """Apply a record of this worker before it is written; it will be applied again when it is read."""
        self._own.clear()
        self._apply_set_trial_param(log)

    def get_all_trials(self, study_id: int, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Return the trials of a study in these states, by number."""
        self.get_study(study_id)
        trials = self._of_study[study_id]
        if states is None:
            return list(trials)
        if not any(state in states for state in TrialState if state.is_finished()):
            return [trials[at] for at in sorted(self._open[study_id]) if trials[at].state in states]
        return [trial for trial in trials if trial.state in states]

    def snapshot(self, records: int, length: int, digest: _Hash) -> Snapshot:
        """Return all of this as it can be saved, with what identifies the records that say it."""
        return Snapshot(
            records, length, digest, self._studies, self._next_study_id, self._trials,
            self._study_id_to_trial_ids,
        )  # fmt: skip

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what was saved."""
        self.log_number_read = snapshot.records
        self._studies, self._next_study_id = snapshot.studies, snapshot.next_study
        self._trials, self._study_id_to_trial_ids = snapshot.trials, snapshot.trials_of
        for study_id, ids in snapshot.trials_of.items():
            trials = [self._trials[one] for one in ids]
            self._of_study[study_id] = trials
            self._open[study_id] = {trial.number for trial in trials if not trial.state.is_finished()}
            self._trial_id_to_study_id |= dict.fromkeys(ids, study_id)
            for distributions in {id(trial.distributions): trial.distributions for trial in trials}.values():
                key = tuple(distributions), tuple(map(id, distributions.values()))
                self._shared[key] = distributions
                for name, distribution in distributions.items():
                    self._distributions.setdefault(distribution_to_json(distribution), distribution)
                    self._first.setdefault((study_id, name), distribution)

    def _apply_create_study(self, log: dict[str, Any]) -> None:
        super()._apply_create_study(log)
        for study_id in self._study_id_to_trial_ids.keys() - self._of_study.keys():
            self._of_study[study_id], self._open[study_id] = [], set()

    def _apply_create_trial(self, log: dict[str, Any]) -> None:
        before = len(self._trials)
        super()._apply_create_trial(log)
        if len(self._trials) > before:
            trial = self._trials[before]
            same = {name: self._distribution(log["distributions"][name]) for name in trial.distributions}
            trial._distributions = same  # noqa: SLF001 - equal ones, kept once
            self._of_study[log["study_id"]].append(trial)
            self._own.add(before)
            for name, distribution in same.items():
                self._first.setdefault((log["study_id"], name), distribution)
            self._note_state(log["study_id"], trial)

    def _apply_set_trial_param(self, log: dict[str, Any]) -> None:
        trial = self._changeable(log)
        if trial is None:
            return
        name, distribution = sys.intern(log["param_name"]), self._distribution(log["distribution"])
        first = self._first.setdefault((self._trial_id_to_study_id[log["trial_id"]], name), distribution)
        if first is not distribution:
            try:
                check_distribution_compatibility(first, distribution)
            except ValueError:
                if self._is_issued_by_this_worker(log):
                    raise
                return
        trial.params[name] = distribution.to_external_repr(log["param_value_internal"])
        trial.distributions[name] = distribution

    def _apply_set_trial_state_values(self, log: dict[str, Any]) -> None:
        super()._apply_set_trial_state_values(log)
        if log["trial_id"] in self._trials:
            study_id, trial = self._trial_id_to_study_id[log["trial_id"]], self._trials[log["trial_id"]]
            self._of_study[study_id][trial.number] = trial
            self._note_state(study_id, trial)

    def _apply_set_trial_intermediate_value(self, log: dict[str, Any]) -> None:
        trial = self._changeable(log)
        if trial is not None:
            trial.intermediate_values[log["step"]] = log["intermediate_value"]

    def _apply_set_trial_user_attr(self, log: dict[str, Any]) -> None:
        trial = self._changeable(log)
        if trial is not None:
            trial.user_attrs.update(log["user_attr"])

    def _apply_set_trial_system_attr(self, log: dict[str, Any]) -> None:
        trial = self._changeable(log)
        if trial is not None:
            trial.system_attrs.update(log["system_attr"])

    def _changeable(self, log: dict[str, Any]) -> FrozenTrial | None:
        """Return a trial that only this object has, since those that were handed out stay as they are."""
        trial_id = log["trial_id"]
        if trial_id in self._own and not self._trials[trial_id].state.is_finished():
            return self._trials[trial_id]
        if not self._trial_exists_and_updatable(trial_id, log):
            return None
        trial = copy.copy(self._trials[trial_id])
        trial.params, trial.distributions = dict(trial.params), dict(trial.distributions)
        trial._user_attrs, trial._system_attrs = dict(trial.user_attrs), dict(trial.system_attrs)  # noqa: SLF001
        trial.intermediate_values = dict(trial.intermediate_values)
        self._trials[trial_id] = trial
        self._of_study[self._trial_id_to_study_id[trial_id]][trial.number] = trial
        self._own.add(trial_id)
        return trial

    def _note_state(self, study_id: int, trial: FrozenTrial) -> None:
        if trial.state.is_finished():
            self._open[study_id].discard(trial.number)
            key = tuple(trial.distributions), tuple(map(id, trial.distributions.values()))
            trial._distributions = self._shared.setdefault(key, trial.distributions)  # noqa: SLF001 - equal ones
        else:
            self._open[study_id].add(trial.number)

    def _distribution(self, text: str) -> BaseDistribution:
        known = self._distributions.get(text)
        if known is None:
            known = self._distributions[text] = json_to_distribution(text)
        return known
