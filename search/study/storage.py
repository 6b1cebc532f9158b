"""Open and create studies in Optuna's storage."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import optuna
from optuna.trial import TrialState

from objectives.runtimes.names import name_of
from search.study.definition import define, differences
from search.study.errors import UserError, machine_fault
from search.study.goal import with_stored_goal
from search.study.journal import storage_at, unusable
from search.study.notes import name_with_unit
from search.study.outline import outline_record
from search.study.records import DEFINITION, DRAFT, GOAL, OUTLINE
from search.study.seeded_sampler import SeededSampler

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study
    from optuna.storages import BaseStorage

    from search.study.spec import StudySpec

MOST_DIFFERENCES_SHOWN = 3  # changed settings that an error message quotes in full


def open_study(spec: StudySpec, folder: Path, url: str | None, *, create: bool) -> Study:
    """Open a study, or create it.

    Parameters
    ----------
    spec
        The study, with a sampler and a start (see `search.proposals.defaults.resolved`). Without a goal it has the goal
        that it was started with (see `search.study.goal.with_stored_goal`).
    folder
        The folder of its files; it also holds the trials, as `journal.log`, unless `url` names a storage.
    url
        Any storage URL of Optuna, such as `postgresql://...` or `sqlite:///file.db`.
    create
        Whether to create the study if it does not exist.

    Raises
    ------
    UserError
        If the storage cannot be read, holds no such study or one with another definition, or the folder holds the
        candidates of another study.
    """
    definition = define(spec)
    try:
        storage = storage_at(folder, url, create=create)
        study, changed = _opened(storage, spec, definition, folder, create=create)
        study.get_trials(deepcopy=False)  # reads the whole storage, so that damage shows here
    except UserError:
        raise
    except Exception as error:
        raise machine_fault(error) or unusable(error, folder, url) from error
    if changed and spec.goal and all(words.startswith("limits") for words in changed):
        stored = study.user_attrs.get(GOAL)
        before = f"the goal {stored['text']!r}" if stored else "no goal"
        raise UserError(
            f"the study {spec.name!r} was started with {before}, so it cannot continue with {spec.goal!r}; leave "
            "--goal out, or start another study with --folder"
        )
    if changed:
        hidden = len(changed) - MOST_DIFFERENCES_SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        hint = ""
        if any(words.startswith("seed was") for words in changed):
            hint = " (--seed is the study's; the number of trainings of `confirm` is --seeds)"
        raise UserError(
            f"the study {spec.name!r} was stored with another definition: "
            f"{'; '.join(changed[:MOST_DIFFERENCES_SHOWN])}{more}; undo the change, or give the new study another name "
            f"or --folder{hint}"
        )
    if create:
        outline = outline_record(with_stored_goal(study, spec))
        if study.user_attrs.get(OUTLINE) != outline:
            study.set_user_attr(OUTLINE, outline)
    return study


def _opened(
    storage: BaseStorage, spec: StudySpec, definition: dict[str, str], folder: Path, *, create: bool
) -> tuple[Study, list[str]]:
    """Return the study, created if `create` says so, and the differences of its stored definition."""
    stored = {summary.study_name for summary in storage.get_all_studies()}
    if spec.name not in stored:
        if not create:
            raise UserError(f"the storage holds no study called {spec.name!r}; start it with: slimfront run")
        return _created(storage, spec, definition, _goal(spec), folder), []
    study = optuna.load_study(study_name=spec.name, storage=storage, sampler=_sampler(spec))
    whole = with_stored_goal(study, spec)
    present = definition if whole is spec else define(whole)
    changed = differences(study.user_attrs.get(DEFINITION, present), present)
    nothing_trained = not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
    if create and changed and nothing_trained:
        # An error ended the study before its first trial, and the new definition may be the correction.
        goal = _goal(spec) or study.user_attrs.get(GOAL)
        for name in {spec.name, spec.name + DRAFT} & stored:
            optuna.delete_study(study_name=name, storage=storage)
        return _created(storage, spec, present, goal, folder), []
    return study, changed


def _goal(spec: StudySpec) -> dict[str, str] | None:
    """Return what is stored of a goal: its text, and the runtime of the files that it is about."""
    return {"text": spec.goal, "runtime": name_of(spec.runtime)} if spec.goal else None


def _created(
    storage: BaseStorage, spec: StudySpec, definition: dict[str, str], goal: dict[str, str] | None, folder: Path
) -> Study:
    """Create the study; refuse a folder that holds the candidates of another one."""
    if any(path for name in ("candidates", "confirmed", "verified") for path in folder.glob(f"{name}/*")):
        raise UserError(f"{folder} holds the candidates of another study; name another folder with --folder")
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=[objective.direction for objective in spec.objectives],
        sampler=_sampler(spec),
        load_if_exists=True,  # another worker may have created it meanwhile
    )
    study.set_user_attr(DEFINITION, definition)
    if goal:
        study.set_user_attr(GOAL, goal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([name_with_unit(objective.name) for objective in spec.objectives])
    return study


def _sampler(spec: StudySpec) -> SeededSampler:
    assert spec.sampler is not None, "call search.proposals.defaults.resolved first"
    return SeededSampler(spec.sampler, spec.seed)
