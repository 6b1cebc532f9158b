"""The command `confirm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.commands.loading import opened, with_weights
from search.commands.showing import members_of, show_front
from search.evaluation.answers import ensure_same_answers
from search.evaluation.reference import prepared
from search.evaluation.tried_precisions import leave_out_failing
from search.loop.schedule import range_tested
from search.results.confirm import confirm
from search.results.export import verify_front
from search.results.pick import pick
from search.results.tables import confirmed_table
from search.study.console import console
from search.study.files import ensure_writable, load_json
from search.study.machine import device_named
from search.study.printed_tables import print_table
from search.study.weights import CONFIRMED

if TYPE_CHECKING:
    import argparse


def command(options: argparse.Namespace) -> int:
    """Train the members of the front for longer, then verify and print the front; return the exit code."""
    study, spec, folder = opened(options)
    ensure_writable(folder)
    front_members = members_of(study, spec, folder)
    trials = [pick(study, spec, front_members, options.pick)] if options.pick else [one.trial for one in front_members]
    # The runtime is tried on the teacher before any training, so that a missing operator shows early.
    context, reference = prepared(spec, device_named(options.device), folder)
    ensure_same_answers(study, context.subject)
    leave_out_failing(study, context.subject)
    if options.seeds:
        records = confirm(trials, context, folder, options.seeds, range_tested(study, context))
        teacher = load_json(folder / CONFIRMED / "front.json")["teacher"]
        print_table(confirmed_table(records, teacher, spec, study), options.format)
    failures = verify_front(with_weights(trials, folder), context, folder, reference)
    if options.format == "table" or not options.seeds:
        show_front(study, context.spec, members_of(study, spec, folder), options.format)
    for failure in failures:
        console.error(f"slimfront: {failure}")
    return 1 if failures else 0
