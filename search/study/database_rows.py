"""Optuna's storage in a database, with statements that read and write many rows at once.

The tables are Optuna's. `search.study.quick_database` keeps what was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.storages import RDBStorage
from optuna.storages._rdb import models

from search.study.database_reading import created_with, read_trials, require_study, states_after
from search.study.database_writing import INSERTS, add_params, create, is_plain, set_attributes, set_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy import URL


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

    def _set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial."""
        for key, value in attributes.items():
            self.set_trial_user_attr(trial_id, key, value)

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
        self._set_trial_user_attrs(trial_id, {key: value})

    def _set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Set attributes of a trial: others see all of them or none."""
        with self.engine.begin() as connection:
            set_attributes(connection, models.TrialUserAttributeModel, trial_id, attributes)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:  # noqa: ANN401 - JSON
        """Set an attribute of a trial that Optuna reads."""
        with self.engine.begin() as connection:
            set_attributes(connection, models.TrialSystemAttributeModel, trial_id, {key: value})
