"""How exporters are called: silently, without gradients, and without work that PyTorch repeats for each file."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING
from unittest import mock

import torch

from objectives.runtimes.runtime import silence

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOK_UP, _KIND = "_materialize_cpp_cia_ops", "CompositeImplicitAutograd"
_listed: list[str] = []  # the operators of that kind when they were last looked up


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Run an exporter; see `silence`."""
    with silence(), torch.no_grad(), _operators_looked_up_once():
        yield


@contextlib.contextmanager
def _operators_looked_up_once() -> Iterator[None]:
    """Let `torch.export` look all composite operators up again only if there are others.

    It does so for each of about 30 namespaces, several times for each file, lest it misses new ones: a fifth of the
    export of a small network.
    """
    utils = importlib.import_module("torch._export.utils")
    look_up = getattr(utils, _LOOK_UP, None)
    if look_up is None:  # another version of torch
        yield
        return

    def look_new_ones_up() -> None:
        found = torch._C._dispatch_get_registrations_for_dispatch_key(_KIND)  # noqa: SLF001
        if found != _listed:
            look_up()
            _listed[:] = found

    with mock.patch.object(utils, _LOOK_UP, look_new_ones_up):
        yield
