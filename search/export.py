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
from search.codec import decode, encode
from search.definition import fingerprint
from search.errors import UserError
from search.progress import track
from search.storage import save_json
from search.trial import VALUES, save_state
from search.verification import Disagreement, verify
from search.verified import WEIGHTS, digest, outdated, record_of, record_path
from spaces import deployed, opened

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from torch import nn

    from search.bench import Bench
    from spaces import Plan

PLAN, STATE, RECORD = "plan.json", "state.safetensors", "verification.json"


def plan_of(trial: FrozenTrial, bench: Bench) -> Plan:
    """Rebuild the plan of a past trial."""
    return bench.plan(trial.params)


def restored(trial: FrozenTrial, bench: Bench, weights: Path) -> nn.Module:
    """Return the trained network of a past trial, in evaluation mode.

    Raises
    ------
    UserError
        If its weights are gone.
    """
    if not weights.exists():
        raise UserError(f"the weights of trial {trial.number} are missing: {weights}; --folder names where they lie")
    model = bench.build(plan_of(trial, bench))
    model.load_state_dict(load_file(weights))
    return model.to(bench.device).eval()


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
        content = json.loads((folder / PLAN).read_text())
        state = load_file(folder / STATE)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} must hold {PLAN} and {STATE} as export writes them: {error}") from error
    example = torch.randn((8, *content["input_shape"]), generator=torch.Generator().manual_seed(0))
    rebuilt = decode(content["plan"], kinds).apply(opened(model, example), example)
    rebuilt.load_state_dict(state)
    return rebuilt.eval()  # type: ignore[no-any-return]


def teacher_file(bench: Bench, folder: Path) -> Path:
    """Return the teacher's own file, exported once a folder: the reference of every latency.

    Raises
    ------
    ExportError
        If the runtime cannot take the teacher; it is tried before a search starts, not after hours of it.
    """
    spec = bench.spec
    path = folder / f"teacher-{fingerprint(spec.teacher)}.{spec.runtime.suffix}"
    if not path.exists():
        unfinished = path.with_name(f".{os.getpid()}-{path.name}")
        bench.export_teacher(spec.runtime, unfinished)
        unfinished.replace(path)
    bench.weigh(path)
    return path


def verify_front(members: list[tuple[FrozenTrial, Path]], bench: Bench, folder: Path) -> list[str]:
    """Export, read back and verify every member with the weights beside it, unless it was; return what failed.

    Each record lies in `verified/` and the name of the runtime.
    """
    spec = bench.spec
    todo = [(trial, weights) for trial, weights in members if outdated(record_of(folder, trial, spec), weights)]
    failures = []
    if not todo:
        return []
    reference, example = teacher_file(bench, folder), spec.example()
    with track(f"verifying {len(todo)} members of the front from their {spec.runtime.name} files") as told:
        for done, (trial, weights) in enumerate(todo):
            model = restored(trial, bench, weights).cpu()
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / f"model.{spec.runtime.suffix}"
                record_path(folder, trial, spec).unlink(missing_ok=True)  # of other weights
                try:
                    spec.runtime.export(deployed(model, example), example, path)
                    found = verify(model, path, spec, reference) | {WEIGHTS: digest(weights)}
                    save_json(record_path(folder, trial, spec), found)
                except (Disagreement, ExportError) as error:
                    failures.append(f"trial {trial.number}: {error}")
            told((done + 1) / len(todo))
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
    others = sorted(found - models - {PLAN, STATE, RECORD})
    if others:
        raise UserError(f"{folder} holds what no export wrote, such as {others[0]}; name another folder with --out")
    if found and not replace:
        raise UserError(f"{folder} is not empty; name another folder with --out, or overwrite it with --replace")


def export(trial: FrozenTrial, bench: Bench, weights: Path, folder: Path, reference: Path) -> dict[str, Any]:
    """Write the model, plan.json, state.safetensors and verification.json; nothing appears before all is verified.

    Parameters
    ----------
    trial, bench
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
    spec = bench.spec
    model = restored(trial, bench, weights).cpu()
    example, name = spec.example(), f"model.{spec.runtime.suffix}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}-{os.getpid()}"
    unfinished.mkdir()
    try:
        spec.runtime.export(deployed(model, example), example, unfinished / name)
        record = verify(model, unfinished / name, spec, reference)
        values = trial.user_attrs[VALUES]
        record |= {"study": spec.name, "trial": trial.number, "searched": values, "weights": str(weights.name)}
        plan = plan_of(trial, bench)
        content = {"plan": encode(plan), "words": plan.words(), "parameters": trial.params,
                   "input_shape": list(example.shape[1:])}  # fmt: skip
        save_json(unfinished / PLAN, content)
        save_json(unfinished / RECORD, record)
        save_state(model, unfinished / STATE)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return record
