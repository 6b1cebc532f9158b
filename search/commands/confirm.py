"""The command `confirm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from search.command_line import study_arguments
from search.commands.loading import opened, with_weights
from search.commands.showing import members_of, show_front
from search.evaluation.answers import ensure_same_answers
from search.evaluation.reference import prepared
from search.evaluation.tried_precisions import leave_out_failing
from search.loop.rates import range_tested
from search.proposals.draft_records import scored_inputs
from search.results.confirm import confirm
from search.results.export import verify_front
from search.results.pick import pick
from search.results.tables import confirmed_note, confirmed_table
from search.study.console import console, print_result
from search.study.errors import UserError
from search.study.files import ensure_writable, load_json
from search.study.machine import device_named
from search.study.printed_tables import print_table
from search.study.weights import CONFIRMED

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.evaluation.context import Context


class Confirmed(NamedTuple):
    """Members of the front that were trained for longer.

    Attributes
    ----------
    study, context, folder
        The study, its context and its folder.
    reference
        The teacher's file.
    trials
        The members.
    records
        What each measures, as `search.results.confirm.confirm` returns it; empty if nothing was trained.
    """

    study: Study
    context: Context
    folder: Path
    reference: Path
    trials: list[FrozenTrial]
    records: list[dict[str, Any]]

    @property
    def teacher(self) -> dict[str, float]:
        """What the teacher measures on validation and test."""
        return load_json(self.folder / CONFIRMED / "front.json")["teacher"]  # type: ignore[no-any-return]

    def verify(self) -> list[str]:
        """Export and verify the members with their new weights; return a message for each failure."""
        return verify_front(with_weights(self.trials, self.folder), self.context, self.folder, self.reference)


def command(options: argparse.Namespace) -> int:
    """Train the members of the front for longer, then verify and print the front; return the exit code."""
    found = confirmed(options)
    study, spec = found.study, found.context.spec
    if options.seeds:
        print_table(confirmed_table(found.records, found.teacher, spec, study), options.format)
        console.print(confirmed_note(found.records))
    failures = found.verify()
    if not options.seeds:
        show_front(study, spec, members_of(study, spec, found.folder), options.format)
    elif options.format == "table":
        print_result(f"\nThe front with its {spec.runtime.name} files:")
        show_front(study, spec, members_of(study, spec, found.folder), options.format, with_plans=False)
    console.print(f"for a file: slimfront export {study_arguments(options)}")
    for failure in failures:
        console.error(f"slimfront: {failure}")
    return 1 if failures else 0


def confirmed(options: argparse.Namespace) -> Confirmed:
    """Train the members of the front, or one of them, for longer.

    Raises
    ------
    UserError
        If the recipe of a confirmation trains nothing.
    """
    study, spec, folder = opened(options)
    if options.seeds and not spec.confirmation_recipe.epochs:
        raise UserError(
            "nothing is trained in 0 epochs; give the study a confirmation=Recipe(epochs=...), or verify the files of "
            "the members as they are: --seeds 0"
        )
    ensure_writable(folder)
    front_members = members_of(study, spec, folder)
    trials = [pick(study, spec, front_members, options.pick)] if options.pick else [one.trial for one in front_members]
    # The runtime is tried on the teacher before any training, so that a missing operator shows early.
    context, reference = prepared(spec, device_named(options.device), folder)
    ensure_same_answers(study, context.subject)
    leave_out_failing(study, context.subject)
    context.scored_inputs = scored_inputs(study) or context.scored_inputs
    rate = range_tested(study, context) if options.seeds else None
    records = confirm(trials, context, folder, options.seeds, rate, study) if options.seeds else []
    return Confirmed(study, context, folder, reference, trials, records)
