"""The folder of an export: what may be replaced, and how its files become a torch network again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from search.results.plan_json import decode
from search.study.errors import UserError
from search.study.files import Damaged, load_json
from search.study.marks import EXPORT, MARK, foreign, mark_of
from search.study.weights import load_state
from spaces import Plan, unfuse_attention, with_plain_layers
from spaces.network.messages import first_line
from spaces.network.normalizing import normalized

if TYPE_CHECKING:
    from torch import Tensor, nn

    from objectives.trees import Tree

REBUILT_WITH = 8  # inputs with which an exported network is rebuilt; their values do not matter
PLAN_FILE, STATE_FILE, RECORD_FILE = "plan.json", "state.safetensors", "verification.json"
DAMAGED_EXPORT = "copy the folder again, or export it again with: slimfront export STUDY --out FOLDER --replace"


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
    mark = mark_of(folder)
    models = {name for name in existing if name.startswith("model.")}
    if mark is None and len(models) == 1 and existing - models == {PLAN_FILE, STATE_FILE, RECORD_FILE}:
        raise UserError(
            f"{folder} is not marked as ours ({MARK}), as an export of an earlier version is not; if it is one, delete "
            "it, or name another folder with --out"
        )
    if mark is not None and mark.writer != EXPORT:
        raise UserError(f"{folder} was written by slimfront {mark.writer}; name another folder with --out")
    if others := foreign(folder, existing):
        changed = mark is not None and others[0].name in mark.files
        what = f"{others[0].name}, which was changed since" if changed else others[0].name
        raise UserError(f"{folder} contains other files than an export, such as {what}; name another folder with --out")
    if existing and not replace:
        raise UserError(f"{folder} is not empty; name another folder with --out, or overwrite it with --replace")


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
        If the folder does not contain an export, or a damaged one, or one of another network.
    """
    folder = Path(folder)
    try:
        content = load_json(folder / PLAN_FILE)
        mark = mark_of(folder)
        state = load_state(folder / STATE_FILE, *(mark.files.get(STATE_FILE, [])[:1] if mark else ()))
    except (OSError, Damaged) as error:
        raise UserError(
            f"{folder} must contain {PLAN_FILE} and {STATE_FILE} as export writes them: {error}; {DAMAGED_EXPORT}"
        ) from error
    plan, example = _read(content, folder / PLAN_FILE, kinds)
    try:
        return _built(plan, with_plain_layers(normalized(model, example).model, example), example, state)
    except Exception as error:
        # exports of earlier versions have the names and the weights of networks that were less rewritten
        for earlier in (with_plain_layers, unfuse_attention):
            with contextlib.suppress(Exception):
                return _built(plan, earlier(model, example), example, state)
        raise UserError(
            f"the export in {folder} does not fit {type(model).__name__}: {first_line(error)}; pass the teacher's "
            "architecture, with any weights"
        ) from error


def _read(content: dict[str, Any], path: Path, kinds: tuple[type, ...]) -> tuple[Plan, Tree]:
    """Return the plan in the content of plan.json, and inputs of its network.

    Raises
    ------
    UserError
        If the content is not what `export` writes.
    """
    try:
        described = content["inputs"] if "inputs" in content else {"shape": content["input_shape"], "type": "float32"}
        plan, example = decode(content["plan"], kinds), _example(described)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{path} is not a plan as export writes it ({reason}); {DAMAGED_EXPORT}") from error
    if not isinstance(plan, Plan):
        raise UserError(f"{path} must hold a plan, but holds {type(plan).__name__}; {DAMAGED_EXPORT}")
    return plan, example


def _built(plan: Plan, model: nn.Module, example: Tree, state: dict[str, Tensor]) -> nn.Module:
    """Return the plan's network with these weights, in evaluation mode."""
    built = plan.apply(model, example)
    built.load_state_dict(state)
    built.eval()
    return built


def described(inputs: Tree) -> Any:  # noqa: ANN401 - JSON
    """Return shapes and types of the inputs of a network, as JSON, from which `_example` makes inputs."""
    if isinstance(inputs, tuple):
        return [described(part) for part in inputs]
    if isinstance(inputs, Mapping):
        return {"parts": {name: described(part) for name, part in inputs.items()}}
    return {"shape": list(inputs.shape[1:]), "type": str(inputs.dtype).removeprefix("torch.")}


def _example(description: Any) -> Tree:  # noqa: ANN401 - JSON
    """Return inputs that the network accepts: noise, and zeros where they are integers, such as tokens."""
    if isinstance(description, list):
        return tuple(_example(part) for part in description)
    if "parts" in description:
        return {name: _example(part) for name, part in description["parts"].items()}
    dtype = getattr(torch, description["type"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"a type of inputs must be one of torch's, but got {description['type']!r}")
    if not dtype.is_floating_point:
        return torch.zeros((REBUILT_WITH, *description["shape"]), dtype=dtype)
    return torch.randn((REBUILT_WITH, *description["shape"]), generator=torch.Generator().manual_seed(0))
