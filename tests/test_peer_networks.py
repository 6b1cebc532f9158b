"""Networks of a checkout are imported without what is not installed, compressed, and judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from studies.peer_networks import Network, inputs_of, networks, verdict

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
from not_installed import base, Missing
from torch import nn, missing_here, relu
import torch


class Small(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, *inputs):
        return self.last(relu(self.first(inputs[0])))


class Needs(Missing):
    pass


class Weightless(nn.Module):
    def forward(self, x):
        return relu(x)


class Failing(Small):
    def forward(self, x):
        if torch.is_grad_enabled():
            self.first.weight.data += 1
        return super().forward(x)


def test_with_a_class_inside():
    class Inner(Small):
        pass

    raise AssertionError
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "nets.py").write_text(FILE)
    return tmp_path


@pytest.mark.parametrize(
    ("expression", "result", "reason"),
    [
        ("Small(8)", "pass", "1 groups"),
        ("Inner()", "pass", "1 groups"),
        ("BatchFirst(nn.LSTM(4, 5))", "pass", ""),
        ("Needs()", "not importable", "name 'Needs' is not defined"),
        ("Weightless()", "refused", "it has no weights"),
        ("nn.LSTM(4, 5)", "refused", "takes it for the steps"),
        ("Failing()", "FAILED", "RuntimeError: "),
    ],
)
def test_each_network_gets_a_verdict_and_a_reason(folder: Path, expression: str, result: str, reason: str) -> None:
    shape = "2,3,4" if "LSTM" in expression else "2,4"
    got, why = verdict(folder, Network("tool/nets.py", expression, shape), export=False)
    assert (got, reason in why) == (result, True), why


def test_inputs_are_described_in_a_line() -> None:
    (one,) = (inputs_of("2,3"),)
    assert one.shape == (2, 3)
    first, several = inputs_of("i5:2 2,3|2,4")
    assert first.dtype == torch.int64
    assert int(first.max()) < 5
    assert [tensor.shape for tensor in several] == [(2, 3), (2, 4)]
    (named,) = inputs_of("a=2,3|b=2,4")
    assert {name: tuple(tensor.shape) for name, tensor in named.items()} == {"a": (2, 3), "b": (2, 4)}


def test_the_table_holds_networks_of_eight_tools() -> None:
    found = networks()
    assert len({network.peer for network in found}) == 8
    assert len(set(found)) == len(found) > 134
    for network in found:
        compile(network.expression, network.file, "eval")
        inputs_of(network.inputs)
