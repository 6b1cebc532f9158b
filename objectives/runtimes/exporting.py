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
_ORIGIN = "NodeSource"  # of a node of a graph, with those of the nodes that it was made from
_listed: list[str] = []  # the operators of that kind when they were last looked up


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Run an exporter; see `silence`."""
    with silence(), torch.no_grad(), _operators_looked_up_once(), _origins_shared():
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


@contextlib.contextmanager
def _origins_shared() -> Iterator[None]:
    """Let nodes of graphs share the records of their origins, which nothing changes.

    A node that a pass makes anew gets a deep copy of the record of the node before it, which has that of the one before
    in turn. With ExecuTorch's hundred passes that is an eighth of the export of a DenseNet.
    """
    origin = getattr(importlib.import_module("torch.fx.traceback"), _ORIGIN, None)
    if origin is None:  # another version of torch
        yield
        return
    with mock.patch.object(origin, "__deepcopy__", lambda record, _: record, create=True):
        yield
