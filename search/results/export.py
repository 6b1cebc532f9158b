"""From a candidate to files that were read back and checked."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from objectives.runtimes import ExportError
from search.results.file_records import WEIGHTS, digest, outdated, read_record, record_path
from search.results.plan_json import decode, encode
from search.results.verification import Disagreement, verify
from search.study.console import track
from search.study.errors import UserError
from search.study.files import save_json, save_state
from search.study.records import VALUES
from spaces import deployed, unfuse_attention

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from torch import nn

    from search.evaluation.context import Context
    from spaces import Plan

PLAN_FILE, STATE_FILE, RECORD_FILE = "plan.json", "state.safetensors", "verification.json"


def restored(trial: FrozenTrial, context: Context, weights: Path) -> tuple[Plan, nn.Module]:
    """Return the plan of a past trial and its trained network, on the CPU in evaluation mode.

    Raises
    ------
    UserError
        If its weights are gone.
    """
    if not weights.exists():
        raise UserError(f"the weights of trial {trial.number} are missing: {weights}; --folder names where they lie")
    plan = context.plan(trial.params)
    model = context.build(plan)
    model.load_state_dict(load_file(weights))
    return plan, model.cpu().eval()


def rebuild(model: nn.Module, folder: str | Path, kinds: tuple[type, ...] = ()) -> nn.Module:
    """Return the exported torch network from its plan and its weights alone, bit for bit, in evaluation mode.

    Parameters
    ----------
    model
        The teacher's architecture; its weights do not matter.
    folder
        Where `export` wrote.
    kinds
        Classes of steps of your own that the plan holds.

    Raises
    ------
    UserError
        If the folder holds no export.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / PLAN_FILE).read_text())
        state = load_file(folder / STATE_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} must hold {PLAN_FILE} and {STATE_FILE} as export writes them: {error}") from error
    example = torch.randn((8, *content["input_shape"]), generator=torch.Generator().manual_seed(0))
    rebuilt = decode(content["plan"], kinds).apply(unfuse_attention(model, example), example)
    rebuilt.load_state_dict(state)
    return rebuilt.eval()  # type: ignore[no-any-return]


def verify_front(members: list[tuple[FrozenTrial, Path]], context: Context, folder: Path, reference: Path) -> list[str]:
    """Export, read back and verify every member, unless it was; return what failed, in words.

    Parameters
    ----------
    members
        Trials, each with the weights that its file is made of.
    context
        The study.
    folder
        Of the study's files; each record lies in `verified/` and the name of the runtime.
    reference
        The teacher's file.
    """
    spec, subject = context.spec, context.subject
    paths = {trial.number: record_path(folder, trial, spec.runtime) for trial, _ in members}
    todo = [(trial, weights) for trial, weights in members if outdated(read_record(paths[trial.number]), weights)]
    failures = []
    if not todo:
        return []
    example = subject.example.cpu()
    with track(f"verifying {len(todo)} members of the front from their {spec.runtime.name} files") as progress:
        for done, (trial, weights) in enumerate(todo):
            _, model = restored(trial, context, weights)
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / f"model.{spec.runtime.suffix}"
                paths[trial.number].unlink(missing_ok=True)  # of other weights
                try:
                    spec.runtime.export(deployed(model, example), example, path)
                    found = verify(model, path, spec, reference) | {WEIGHTS: digest(weights)}
                    save_json(paths[trial.number], found)
                except (Disagreement, ExportError) as error:
                    failures.append(f"trial {trial.number}: {error}")
            progress((done + 1) / len(todo))
    return failures


def replaceable(folder: Path, *, replace: bool) -> None:
    """Check that an export to the folder destroys nothing but an earlier export, and that only where it is asked to.

    Raises
    ------
    UserError
        If it would.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder with --out")
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    models = {name for name in found if name.startswith("model.")}
    others = sorted(found - models - {PLAN_FILE, STATE_FILE, RECORD_FILE})
    if others:
        raise UserError(f"{folder} holds what no export wrote, such as {others[0]}; name another folder with --out")
    if found and not replace:
        raise UserError(f"{folder} is not empty; name another folder with --out, or overwrite it with --replace")


def export(trial: FrozenTrial, context: Context, weights: Path, folder: Path, reference: Path) -> dict[str, Any]:
    """Write the model, plan.json, state.safetensors and verification.json; nothing appears before all is verified.

    Parameters
    ----------
    trial, context
        The candidate and its study.
    weights
        Its trained state.
    folder
        Where the four files go; replaced as a whole.
    reference
        The teacher's file.

    Returns
    -------
    dict
        What verification.json holds.
    """
    spec = context.spec
    plan, model = restored(trial, context, weights)
    example, name = context.subject.example.cpu(), f"model.{spec.runtime.suffix}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}-{os.getpid()}"
    unfinished.mkdir()
    try:
        spec.runtime.export(deployed(model, example), example, unfinished / name)
        record = verify(model, unfinished / name, spec, reference)
        values = trial.user_attrs[VALUES]
        record |= {"study": spec.name, "trial": trial.number, "searched": values, "weights": str(weights.name)}
        content = {"plan": encode(plan), "words": plan.words(), "parameters": trial.params,
                   "input_shape": list(example.shape[1:])}  # fmt: skip
        save_json(unfinished / PLAN_FILE, content)
        save_json(unfinished / RECORD_FILE, record)
        save_state(model, unfinished / STATE_FILE)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return record
