"""Convert plans to JSON and back, so that an exported network can be rebuilt without its study."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import spaces
from search.study.errors import UserError
from spaces.network.messages import unknown_name

KIND = "kind"  # key of a JSON object: the name of the class


def encode(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Convert dataclasses to objects with their class name under `kind`, and tuples to lists; keep other JSON values.

    Fields that are not in the text of a dataclass (`repr=False`) are the same in all plans of a study, such as the loss
    of the task, and are left out.

    Raises
    ------
    UserError
        If a value has no JSON form, such as a tensor in a step of the user's own.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.repr}
        return {KIND: type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"the fields of a step must be numbers, texts, tuples or dataclasses, but got {value!r}")


def decode(value: Any, kinds: tuple[type, ...] = ()) -> Any:  # noqa: ANN401 - any JSON value
    """Undo `encode`; create only classes that `spaces` exports, and the given ones.

    Parameters
    ----------
    value
        The result of `json.loads`.
    kinds
        The user's own classes, such as steps.

    Raises
    ------
    UserError
        If a class is unknown, or does not take the given fields.
    """
    if isinstance(value, list):
        return tuple(decode(item, kinds) for item in value)
    if not isinstance(value, dict):
        return value
    known: dict[str, Any] = {name: getattr(spaces, name) for name in spaces.__all__}
    known = {name: kind for name, kind in known.items() if dataclasses.is_dataclass(kind)}
    known |= {kind.__name__: kind for kind in kinds}
    kind_name = str(value.get(KIND))
    if kind_name not in known:
        raise UserError(f"{unknown_name('kind of step', kind_name, known)}; give your own classes as kinds=")
    fields = {name: decode(item, kinds) for name, item in value.items() if name != KIND}
    try:
        return known[kind_name](**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"this version cannot create {kind_name} from the fields in the plan: {error}") from error
