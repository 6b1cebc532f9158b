"""Export candidates to files that are read back and verified."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from objectives.layers import inputs_of_file
from objectives.runtimes import ExportError
from objectives.trees import moved, shapes_of
from search.results.file_records import WEIGHTS_DIGEST, digest, outdated, read_record, record_path
from search.results.plan_json import decode, encode
from search.results.verification import Disagreement, verify
from search.study.budget_clock import now, passed_since
from search.study.console import console, track
from search.study.errors import UserError, reason_of
from search.study.files import save_json
from search.study.records import VALUES
from search.study.weights import save_state
from spaces import deployed, unfuse_attention, with_plain_layers
from spaces.network.messages import first_line
from spaces.network.normalizing import normalized

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from torch import Tensor, nn

    from objectives.trees import Tree
    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock
    from spaces import Plan

VERIFICATION_SECONDS = "verification_seconds"  # key of a record: wall and CPU seconds of export and verification
REBUILT_WITH = 8  # inputs with which an exported network is rebuilt; their values do not matter
PLAN_FILE, STATE_FILE, RECORD_FILE = "plan.json", "state.safetensors", "verification.json"


def restored(trial: FrozenTrial, context: Context, weights: Path) -> tuple[Plan, nn.Module]:
    """Restore a trial: return its plan and its trained network, on the CPU in evaluation mode.

    Raises
    ------
    UserError
        If the file of its weights is missing.
    """
    if not weights.exists():
        raise UserError(
            f"the weights of trial {trial.number} are missing: {weights}; name the folder of the study with --folder"
        )
    plan = context.plan(trial.params)
    model = context.build(plan)
    model.load_state_dict(load_file(weights))
    return plan, model.cpu().eval()


def rebuild(model: nn.Module, folder: str | Path, kinds: tuple[type, ...] = ()) -> nn.Module:
    """Rebuild an exported torch network from its plan and its weights, bit for bit, in evaluation mode.

    Parameters
    ----------
    model
        The teacher's architecture, wrapped or not; its weights do not matter.
    folder
        The folder of the export.
    kinds
        Your own classes of steps, if the plan contains any.

    Raises
    ------
    UserError
        If the folder does not contain an export, or one of another network.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / PLAN_FILE).read_text())
        state = load_file(folder / STATE_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} must contain {PLAN_FILE} and {STATE_FILE} as export writes them: {error}") from error
    example = _example(content.get("inputs", {"shape": content["input_shape"], "type": "float32"}))
    plan = decode(content["plan"], kinds)
    try:
        return _built(plan, with_plain_layers(normalized(model, example).model, example), example, state)
    except (ValueError, RuntimeError) as error:
        # exports of earlier versions have the names and the weights of networks that were less rewritten
        for earlier in (with_plain_layers, unfuse_attention):
            with contextlib.suppress(Exception):
                return _built(plan, earlier(model, example), example, state)
        raise UserError(
            f"the export in {folder} does not fit {type(model).__name__}: {first_line(error)}; pass the teacher's "
            "architecture, with any weights"
        ) from error


def _built(plan: Plan, model: nn.Module, example: Tree, state: dict[str, Tensor]) -> nn.Module:
    """Return the plan's network with these weights, in evaluation mode."""
    built = plan.apply(model, example)
    built.load_state_dict(state)
    built.eval()
    return built


def _description(inputs: Tree) -> Any:  # noqa: ANN401 - JSON
    """Return shapes and types of the inputs of a network, as JSON, from which `_example` makes inputs."""
    if isinstance(inputs, tuple):
        return [_description(part) for part in inputs]
    if isinstance(inputs, Mapping):
        return {"parts": {name: _description(part) for name, part in inputs.items()}}
    return {"shape": list(inputs.shape[1:]), "type": str(inputs.dtype).removeprefix("torch.")}


def _example(description: Any) -> Tree:  # noqa: ANN401 - JSON
    """Return inputs that the network accepts: noise, and zeros where they are integers, such as tokens."""
    if isinstance(description, list):
        return tuple(_example(part) for part in description)
    if "parts" in description:
        return {name: _example(part) for name, part in description["parts"].items()}
    dtype = getattr(torch, description["type"])
    if not dtype.is_floating_point:
        return torch.zeros((REBUILT_WITH, *description["shape"]), dtype=dtype)
    return torch.randn((REBUILT_WITH, *description["shape"]), generator=torch.Generator().manual_seed(0))


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
    if elsewhere := [trial for trial, weights in unverified if not weights.exists()]:
        numbers = ", ".join(str(trial.number) for trial in elsewhere)
        console.print(f"trials {numbers} are not verified, because their weights are in another folder than {folder}")
        unverified = [(trial, weights) for trial, weights in unverified if weights.exists()]
    if not unverified:
        return []
    name = f"verifying the {spec.runtime.name} files of {len(unverified)} members of the front"
    with track(name) if bar else contextlib.nullcontext(lambda _: None) as progress:
        for done, (trial, weights) in enumerate(unverified):
            if clock is not None and clock.left <= 0:
                console.print(
                    f"the time is over: {len(unverified) - done} of {len(unverified)} files are not verified; "
                    "`slimfront confirm STUDY --seeds 0` verifies them"
                )
                break
            started = now()
            record_file = record_path(folder, trial, spec.runtime)
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / f"model.{spec.runtime.suffix}"
                record_file.unlink(missing_ok=True)  # the record of other weights
                try:
                    _, model = restored(trial, context, weights)
                    spec.runtime.export(deployed(model, example), inputs_of_file(model, example), path)
                    record = verify(model, path, spec, reference) | {WEIGHTS_DIGEST: digest(weights)}
                    save_json(record_file, record | {VERIFICATION_SECONDS: passed_since(started)})
                except Disagreement as error:
                    failures.append(f"trial {trial.number}: {error}")
                except Exception as error:  # noqa: BLE001 - a runtime may refuse a network in any way
                    failures.append(f"trial {trial.number}: {_failure(error)}")
            progress((done + 1) / len(unverified))
    return failures


def _failure(error: Exception) -> str:
    """Return why a network has no file."""
    reason = reason_of(error)
    return str(error) if isinstance(error, ExportError) else reason


def _unverified(
    members: list[tuple[FrozenTrial, Path]], context: Context, folder: Path
) -> list[tuple[FrozenTrial, Path]]:
    """Return the members whose files have no valid verification."""
    runtime = context.spec.runtime
    return [
        (trial, weights)
        for trial, weights in members
        if outdated(read_record(record_path(folder, trial, runtime)), weights)
    ]


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
        pending = [(trial, weights) for trial, weights in unverified if weights.exists()]
        if not self._seconds:
            records = [read_record(record_path(self.folder, trial, self.context.spec.runtime)) for trial, _ in members]
            known = [record[VERIFICATION_SECONDS] for record in records if VERIFICATION_SECONDS in record]
            self._seconds = [passed[0 if self.wall else 1] for passed in known]
        if not self._seconds and pending:
            started = now()
            for failure in verify_front(pending[:1], self.context, self.folder, self.reference, bar=False):
                console.print(failure, markup=False)
            self._seconds.append(passed_since(started)[0 if self.wall else 1])
            pending = pending[1:]
        return statistics.median(self._seconds) * len(pending) if self._seconds else 0.0


def ensure_replaceable(folder: Path, *, replace: bool) -> None:
    """Check that an export to the folder overwrites at most an earlier export, and only if `replace` allows that.

    Raises
    ------
    UserError
        If it would overwrite anything else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    existing = {path.name for path in folder.iterdir()} if folder.exists() else set()
    models = {name for name in existing if name.startswith("model.")}
    others = sorted(existing - models - {PLAN_FILE, STATE_FILE, RECORD_FILE})
    if others:
        raise UserError(
            f"{folder} contains other files than an export, such as {others[0]}; name another folder with --out"
        )
    if existing and not replace:
        raise UserError(f"{folder} is not empty; name another folder with --out, or overwrite it with --replace")


def export(trial: FrozenTrial, context: Context, weights: Path, folder: Path, reference: Path) -> dict[str, Any]:
    """Write the model, plan.json, state.safetensors and verification.json; the folder appears once all is verified.

    Parameters
    ----------
    trial, context
        The candidate and the context of its study.
    weights
        The path of its trained weights.
    folder
        The folder of the four files; replaced as a whole.
    reference
        The teacher's file, to compare the latency with.

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
    """
    spec = context.spec
    plan, model = restored(trial, context, weights)
    example, name = moved(context.subject.example, "cpu"), f"model.{spec.runtime.suffix}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}-{os.getpid()}"
    unfinished.mkdir()
    try:
        spec.runtime.export(deployed(model, example), inputs_of_file(model, example), unfinished / name)
        record = verify(model, unfinished / name, spec, reference)
        values = trial.user_attrs[VALUES]
        record |= {"study": spec.name, "trial": trial.number, "searched": values, "weights": str(weights.name)}
        content = {"plan": encode(plan), "words": plan.words(), "parameters": trial.params,
                   "input_shape": shapes_of(example), "inputs": _description(example)}  # fmt: skip
        save_json(unfinished / PLAN_FILE, content)
        save_json(unfinished / RECORD_FILE, record)
        save_state(model, unfinished / STATE_FILE)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return record
