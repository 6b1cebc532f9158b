"""A plan as JSON and back, so that an exported network can be rebuilt without the study that found it."""

from __future__ import annotations

import dataclasses
from typing import Any

import spaces
from search.study.errors import UserError
from spaces.network.messages import unknown_name

KIND = "kind"


def encode(value: object) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return dataclasses as objects with their class under `kind`, tuples as lists, the rest as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {KIND: type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any, kinds: tuple[type, ...] = ()) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Undo `encode`; only the classes that `spaces` exports and the given ones are ever made.

    Parameters
    ----------
    value
        What `json.loads` returned.
    kinds
        Steps and the like of the user's own.

    Raises
    ------
    UserError
        If a kind is not known, or does not take what is given.
    """
    if isinstance(value, list):
        return tuple(decode(item, kinds) for item in value)
    if not isinstance(value, dict):
        return value
    known: dict[str, Any] = {name: getattr(spaces, name) for name in spaces.__all__}
    known = {name: kind for name, kind in known.items() if dataclasses.is_dataclass(kind)}
    known |= {kind.__name__: kind for kind in kinds}
    named = str(value.get(KIND))
    if named not in known:
        raise UserError(f"{unknown_name('kind of step', named, known)}; give your own classes as kinds=")
    given = {name: decode(item, kinds) for name, item in value.items() if name != KIND}
    try:
        return known[named](**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"a plan of this version holds no such {named}: {error}") from error
