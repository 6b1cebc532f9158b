"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from objectives.runtimes.ends import form_of
from objectives.runtimes.image_sizes import sizes_of
from search.commands.loading import opened
from search.commands.showing import members_of
from search.evaluation.answers import ensure_same_answers
from search.evaluation.reference import prepared
from search.evaluation.tried_precisions import leave_out_failing
from search.results.artifacts import attach
from search.results.confirm import weights_of
from search.results.export import Asked, export
from search.results.exported import STATE_FILE, ensure_replaceable
from search.results.pick import pick
from search.results.verification import record_words
from search.study.console import print_result, step
from search.study.errors import UserError
from search.study.files import ensure_writable
from search.study.machine import device_named
from search.study.marks import MARK, recover
from search.study.printed_tables import print_json, print_table
from search.study.records import TEACHER

if TYPE_CHECKING:
    import argparse

    from objectives.runtimes.ends import Form


class Exported(NamedTuple):
    """An exported member of the front: its number, the folder of its files, and their verification."""

    number: int
    folder: Path
    record: dict[str, Any]


def command(options: argparse.Namespace) -> int:
    """Write one member of the front as a verified file, and say what it is; return the exit code."""
    number, out, record = exported(options)
    files = sorted(out.iterdir())
    if options.format == "json":
        print_json({"folder": str(out), "files": [path.name for path in files], "verification": record})
        return 0
    if options.format == "csv":
        flat = pd.json_normalize({"folder": str(out), **record}, sep="_")
        lists = [name for name, value in flat.iloc[0].items() if isinstance(value, list)]
        print_table(flat.drop(columns=lists), options.format)
        return 0
    print_result(f"trial {number}: {record_words(record)}")
    print_result(f"weights: {'of confirm (first seed)' if 'seed' in record['weights'] else 'of the search'}")
    for path in files:
        print_result(str(path))
    return 0


def exported(options: argparse.Namespace) -> Exported:
    """Write one member of the front as a verified file.

    Raises
    ------
    UserError
        If the words for the ends of the file or its sizes cannot be read, or what `export` and `pick` raise.
    """
    study, spec, folder = opened(options)
    trial = pick(study, spec, members_of(study, spec, folder), options.pick or ("goal" if spec.goal else "knee"))
    form = _form(options)
    out = Path(options.out) if options.out else folder / "export"
    recover(out)
    ensure_replaceable(out, replace=options.replace)
    ensure_writable(out.parent)
    context, reference = prepared(spec, device_named(options.device), folder)
    ensure_same_answers(study, context.subject)
    leave_out_failing(study, context.subject)
    asked = Asked(form, options.preprocessing, options.license)
    with step(f"exporting and verifying trial {trial.number}"):
        record = export(
            trial, context, weights_of(folder, trial), out, reference, asked, study.user_attrs.get(TEACHER, {})
        )
    attach(study, trial, folder, {path.name: path for path in out.iterdir() if path.name not in {MARK, STATE_FILE}})
    return Exported(trial.number, out, record)


def _form(options: argparse.Namespace) -> Form:
    """Return what is asked of the ends of the file.

    Raises
    ------
    UserError
        If it cannot be read, or contradicts itself.
    """
    option = "--sizes"
    try:
        sizes = sizes_of(options.sizes)
        option = "--io"
        form = form_of(options.io, free_size=options.dynamic_size, sizes=sizes)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from error
    if form.free_size and form.sizes:
        raise UserError(
            "--sizes and --dynamic-size exclude each other: an entry point for each size, or one for any size"
        )
    return form
