"""Export candidates to files that are read back and verified."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from objectives.arena import HasSource
from objectives.identity import Origin
from objectives.layers import inputs_of_file
from objectives.runtimes import ExportError
from objectives.runtimes.ends import Form
from objectives.runtimes.names import name_of
from objectives.trees import at, moved, run, shapes_of
from search.results.confirm import confirmed_with
from search.results.exported import PLAN_FILE, RECORD_FILE, STATE_FILE, described, ensure_replaceable
from search.results.file_records import FAILURE, failure_path, read_record, record_path
from search.results.interface import Interface, interface
from search.results.plan_json import encode
from search.results.recorded import ensure_as_recorded, recorded, restored
from search.results.verification import Disagreement, record_words, verify
from search.study.attributes import numbers_of
from search.study.budget_clock import now, passed_since
from search.study.console import console, track
from search.study.errors import reason_of
from search.study.files import save_json, sha256
from search.study.marks import EXPORT, digests_of, replace_folder, set_mark, unfinished_folder
from search.study.records import VALUES, WEIGHTS
from search.study.weights import are_available, save_state
from spaces import deployed
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import FrozenTrial
    from torch import nn

    from objectives.runtimes import Runtime
    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from search.study.spec import StudySpec

SOURCE_FILE = "model.cc"  # beside the file, for devices without a file system
VERIFIED_FOR = "verified_for"  # key of a record: the runtime, with its version if the study names one
OUT_OF_TIME = (
    "the time is over: {} of {} files of the front are not verified; `slimfront confirm`, with the same options and "
    "--seeds 0, verifies them"
)
VERIFICATION_SECONDS = "verification_seconds"  # key of a record: wall and CPU seconds of export and verification


def verify_front(
    members: list[tuple[FrozenTrial, Path]],
    context: Context,
    folder: Path,
    reference: Path,
    clock: BudgetClock | None = None,
    *,
    bar: bool = True,
) -> list[str]:
    """Export, read back and verify every member that has no valid verification; return a message for each failure.

    Parameters
    ----------
    members
        Trials, each with the path of the weights to export.
    context
        The context of the study.
    folder
        The folder of the study's files; records are written to `verified/<name of the runtime>/`.
    reference
        The teacher's file, to compare the latency with.
    clock
        The clock of a budget: once its time is over, the remaining files are left out, and a message says so.
    bar
        Whether a progress bar is shown; there can be one at a time.
    """
    spec, example = context.spec, moved(context.subject.example, "cpu")
    unverified = _unverified(members, context, folder)
    failures = []
    if elsewhere := [trial for trial, weights in unverified if not are_available(trial, weights)]:
        numbers = ", ".join(str(trial.number) for trial in elsewhere)
        console.print(f"trials {numbers} are not verified, because their weights are in another folder than {folder}")
        unverified = [(trial, weights) for trial, weights in unverified if are_available(trial, weights)]
    if not unverified:
        return []
    if clock is not None and clock.left <= 0:
        console.print(OUT_OF_TIME.format(len(unverified), len(unverified)))
        return []
    before = len(members) - len(unverified)
    name = f"verifying {number_of(len(unverified), f'{spec.runtime.name} file')} of the front"
    name += f" ({before} verified before)" if before else ""
    with track(name) if bar else contextlib.nullcontext(lambda _: None) as progress:
        for done, (trial, weights) in enumerate(unverified):
            if clock is not None and clock.left <= 0:
                console.print(OUT_OF_TIME.format(len(unverified) - done, len(unverified)))
                break
            started = now()
            record_file = record_path(folder, trial, spec.runtime)
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / f"model.{spec.runtime.suffix}"
                for old in (record_file, failure_path(folder, trial, spec.runtime)):  # of other weights
                    old.unlink(missing_ok=True)
                try:
                    _, model = restored(trial, context, weights)
                    finished = deployed(model, example)
                    ensure_as_recorded(trial, weights, model, finished, spec)
                    spec.runtime.export(finished, inputs_of_file(model, example), path)
                    used = Interface(model, spec.splits.validation)
                    record = verify(used, path, spec, reference) | {WEIGHTS: sha256(weights)}
                    save_json(
                        record_file,
                        record | {VERIFICATION_SECONDS: passed_since(started), VERIFIED_FOR: name_of(spec.runtime)},
                    )
                    console.detail(f"trial {trial.number}: {record_words(record)}")
                except Exception as error:  # noqa: BLE001 - a runtime may refuse a network in any way
                    if isinstance(error, Disagreement) or are_available(trial, weights):
                        failures.append(f"trial {trial.number}: {_failure(error)}")
                        save_json(failure_path(folder, trial, spec.runtime), {FAILURE: _failure(error)})
                    else:
                        console.print(f"trial {trial.number} left the front while it was verified")
            progress((done + 1) / len(unverified))
    return failures


def _failure(error: Exception) -> str:
    """Return why a network has no file."""
    return str(error) if isinstance(error, ExportError | Disagreement) else reason_of(error)


def _unverified(
    members: list[tuple[FrozenTrial, Path]], context: Context, folder: Path
) -> list[tuple[FrozenTrial, Path]]:
    """Return the members whose files have no valid verification."""
    runtime = context.spec.runtime
    return [
        (trial, weights)
        for trial, weights in members
        if _is_outdated(read_record(record_path(folder, trial, runtime)), trial, weights, runtime)
    ]


def _is_outdated(record: dict[str, Any], trial: FrozenTrial, weights: Path, runtime: Runtime) -> bool:
    """Return whether a verification record is missing, or belongs to other weights, or another version of a runtime."""
    if record and record.get(VERIFIED_FOR, runtime.name) != name_of(runtime):
        return True
    if not record or not are_available(trial, weights):
        return not record
    return bool(record.get(WEIGHTS) != (recorded(trial, weights).sha256 or sha256(weights)))


@dataclass
class VerificationTime:
    """How long the verification of the front will take.

    As soon as a candidate is trained, one file is verified: so a candidate that the runtime does not support is
    reported early, and the time of the others is known.

    Parameters
    ----------
    context, folder, reference
        As in `verify_front`.
    wall
        Whether wall time is returned; otherwise CPU time.
    """

    context: Context
    folder: Path
    reference: Path
    wall: bool
    _seconds: list[float] = field(default_factory=list)

    def of(self, members: list[tuple[FrozenTrial, Path]]) -> float:
        """Return the seconds that verifying the members will take."""
        unverified = _unverified(members, self.context, self.folder)
        pending = [(trial, weights) for trial, weights in unverified if are_available(trial, weights)]
        if not self._seconds:
            records = [read_record(record_path(self.folder, trial, self.context.spec.runtime)) for trial, _ in members]
            known = [record[VERIFICATION_SECONDS] for record in records if VERIFICATION_SECONDS in record]
            self._seconds = [passed[0 if self.wall else 1] for passed in known]
        if not self._seconds and pending:
            started = now()
            for failure in verify_front(pending[:1], self.context, self.folder, self.reference, bar=False):
                console.print(failure)
            self._seconds.append(passed_since(started)[0 if self.wall else 1])
            pending = pending[1:]
        return statistics.median(self._seconds) * len(pending) if self._seconds else 0.0


class Asked(NamedTuple):
    """What is asked of an exported file.

    Attributes
    ----------
    form
        The numbers at its ends.
    preprocessing
        Whether it does the preprocessing of the study.
    license_name
        The license of the weights, for the card.
    """

    form: Form = Form()
    preprocessing: bool = False
    license_name: str = ""


AS_IT_IS = Asked()
NOT_MEASURED: Mapping[str, float] = MappingProxyType({})


def export(
    trial: FrozenTrial,
    context: Context,
    weights: Path,
    folder: Path,
    reference: Path,
    asked: Asked = AS_IT_IS,
    teacher: Mapping[str, float] = NOT_MEASURED,
) -> dict[str, Any]:
    """Write the model and what describes it; the folder appears once all is verified.

    It holds the model, plan.json, state.safetensors, verification.json, a card with a picture of the plan and, for
    devices without files, model.cc.

    Parameters
    ----------
    trial, context
        The candidate and the context of its study.
    weights
        The path of its trained weights.
    folder
        The folder of the files and their mark; replaced as a whole.
    reference
        The teacher's file, to compare the latency with.
    asked
        What is asked of the file.
    teacher
        What was measured on the teacher, for the card.

    Returns
    -------
    dict
        The content of verification.json.

    Raises
    ------
    Disagreement
        If the file does not answer as the network does.
    ExportError
        If the runtime cannot take the network.
    UserError
        If the folder holds what is not ours, or the weights are not what the search or `confirm` recorded.
    """
    from search.results.model_card import write_card  # noqa: PLC0415 - only here it is worth the import of plots

    spec = context.spec
    plan, model = restored(trial, context, weights)
    example, name = moved(context.subject.example, "cpu"), f"model.{spec.runtime.suffix}"
    finished = deployed(model, example)
    ensure_as_recorded(trial, weights, model, finished, spec)
    used, shipped, inputs = interface(model, finished, example, spec, asked.form, preprocessing=asked.preprocessing)
    with unfinished_folder(folder.parent, folder.name) as unfinished:
        spec.runtime.export(shipped, inputs, unfinished / name)
        if isinstance(spec.runtime, HasSource):
            (unfinished / SOURCE_FILE).write_text(spec.runtime.c_source(unfinished / name))
        record = verify(used, unfinished / name, spec, reference)
        values = numbers_of(trial, VALUES)
        record |= {"study": spec.name, "trial": trial.number, "searched": values, "weights": str(weights.name)}
        record |= _origin(spec, model)
        content = {"plan": encode(plan), "words": plan.words(), "parameters": trial.params,
                   "input_shape": shapes_of(example), "inputs": described(example)}  # fmt: skip
        save_json(unfinished / PLAN_FILE, content)
        save_json(unfinished / RECORD_FILE, record)
        save_state(model, unfinished / STATE_FILE)
        first, confirmed = at(inputs, slice(1)), confirmed_with(weights, trial)
        write_card(unfinished, trial, plan, context, record, first, confirmed, teacher, asked.license_name)
        set_mark(unfinished, EXPORT, digests_of(unfinished))
        ensure_replaceable(folder, replace=True)  # much may have been put there meanwhile
        replace_folder(unfinished, folder)
    return record


def _origin(spec: StudySpec, model: nn.Module) -> dict[str, Any]:
    """Return what the validation data say of the classes and the preprocessing, if they say it."""
    names, transform = getattr(spec.splits.validation, "origin", Origin())
    with torch.no_grad():
        answers = run(model, spec.example())
    fitting = isinstance(answers, Tensor) and answers.shape[1:] == (len(names),)
    return {**({"classes": list(names)} if fitting else {}), **({"transform": transform} if transform else {})}
