"""What the commands `run` and `worker` share: the study, opened and prepared, and the clock of its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from search.command_line import study_arguments
from search.commands.loading import loaded, on_runtime, with_weights
from search.evaluation.answers import ensure_same_answers
from search.evaluation.reference import bounded, prepared
from search.evaluation.tried_precisions import leave_out_failing
from search.loop.run import run
from search.results.export import VerificationTime
from search.study.budget_clock import BudgetClock
from search.study.cpu_profile import PREPARING
from search.study.files import ensure_writable
from search.study.front import front
from search.study.goal import with_stored_goal
from search.study.machine import device_named
from search.study.notes import note_study, study_text
from search.study.records import ARTIFACTS, KEEP, TEACHER
from search.study.storage import open_study
from search.study.stored import claim, remember
from search.study.weights import Store

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from optuna import Study

    from search.evaluation.context import Context
    from search.study.spec import StudySpec


class Search(NamedTuple):
    """A study, ready to be searched.

    Attributes
    ----------
    study, spec
        The study in its storage, and its specification with its goal and on the runtime of the options.
    context
        Its context, with the bounds of all limits.
    folder, reference
        The folder of its files, and the teacher's file.
    clock
        The clock of the budget.
    """

    study: Study
    spec: StudySpec
    context: Context
    folder: Path
    reference: Path
    clock: BudgetClock

    def run(self, *, unverified: bool) -> bool:
        """Search until the budget is spent; return False if the user stopped the run before.

        Parameters
        ----------
        unverified
            Whether no time is kept for verifying the files of the front.
        """
        wall, workers = self.spec.budget.minutes is not None, self.clock.workers
        verifying = VerificationTime(self.context, self.folder, self.reference, wall=wall)

        def reserve() -> float:
            """Return the seconds for the files, of CPU time this worker's share."""
            seconds = verifying.of(with_weights(front(self.study), self.folder))
            return seconds if wall else seconds / workers

        return run(self.study, self.context, self.folder, self.clock, None if unverified else reserve)


def opened_search(options: argparse.Namespace, workers: int = 1, run_name: str = "") -> Search:
    """Open or create the study of the options and prepare it; see `BudgetClock` for the other parameters."""
    spec, folder = loaded(options)
    ensure_writable(folder)
    claim(folder)
    study = open_study(spec, folder, options.storage, create=True)
    _keep_settings(study, options)
    remember(folder, spec.name, options.study if isinstance(options.study, str) else "", options.set)
    spec = on_runtime(options, with_stored_goal(study, spec))
    wall, cpu = options.start
    clock = BudgetClock(spec.budget, wall, cpu, workers=workers, run=run_name)
    context, reference = prepared(spec, device_named(options.device), folder, clock)
    context.cpu_profile.charge_since(cpu, PREPARING)
    ensure_same_answers(study, context.subject)
    leave_out_failing(study, context.subject)
    context = bounded(study, context)
    note_study(study, study_text(study, spec, study.user_attrs[TEACHER], study_arguments(options)))
    return Search(study, spec, context, folder, reference, clock)


def _keep_settings(study: Study, options: argparse.Namespace) -> None:
    """Keep with the study where its weights are uploaded to, and how much its folder may take.

    Raises
    ------
    UserError
        If the store cannot be used.
    """
    if options.keep_gb is not None:
        study.set_user_attr(KEEP, options.keep_gb)
    if options.artifacts is not None:
        Store(options.artifacts).check()
        study.set_user_attr(ARTIFACTS, options.artifacts)
