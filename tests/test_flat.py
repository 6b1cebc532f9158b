"""Networks of several inputs and outputs in the files of every runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from objectives.flat import flat
from objectives.runtimes import named
from objectives.runtimes.isolated_process import IsolatedProcess
from objectives.trees import Tree, leaves, map_tensors, rebuilt, run


@dataclass
class Answer:
    """Outputs as a dataclass, with a part that is no tensor."""

    logits: Tensor
    kind: str
    hidden: Tensor


class Joined(nn.Module):
    """A picture and numbers, tokens or not, and answers in several structures."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.picture, self.numbers, self.head = nn.Conv2d(1, 4, 3), nn.Linear(3, 4), nn.Linear(8, 2)
        self.answer = answer

    def forward(self, picture: Tensor, numbers: Tensor) -> Any:
        seen = self.picture(picture).relu().mean((2, 3))
        hidden = torch.cat([seen, self.numbers(numbers).relu()], 1)
        logits = self.head(hidden)
        return {
            "tensor": logits,
            "tuple": (logits, hidden),
            "dict": {"logits": logits, "parts": [seen, hidden], "none": None},
            "dataclass": Answer(logits, "joined", hidden),
        }[self.answer]


class Embedded(nn.Module):
    """Token indices and a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is not None
        found: Tensor = self.head((self.table(ids) * mask[..., None]).sum(1))
        return found


PAIR = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(1)), torch.rand(6, 3)
CASES: dict[str, tuple[nn.Module, Tree]] = {
    **{f"two inputs to a {answer}": (Joined(answer), PAIR) for answer in ("tensor", "tuple", "dict", "dataclass")},
    "inputs by name": (Joined("tuple"), {"numbers": PAIR[1], "picture": PAIR[0]}),
    "tokens": (Embedded(), {"ids": torch.randint(0, 20, (6, 5)), "mask": torch.ones(6, 5)}),
}


@pytest.mark.parametrize("runtime", ["onnx", "litert", "executorch", "openvino"])
@pytest.mark.parametrize("case", CASES)
def test_files_take_and_return_all_tensors(case: str, runtime: str, tmp_path: Path) -> None:
    model, inputs = CASES[case]
    file_format, path = named(runtime), tmp_path / "file"
    file_format.export(model.eval(), inputs, path)
    with torch.no_grad():
        expected = run(model, inputs)
    found = file_format.load(path)(inputs)
    for one, other in zip(leaves(expected), leaves(found), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_another_process_runs_a_file_of_several_tensors(tmp_path: Path) -> None:
    model, inputs = CASES["two inputs to a dict"]
    named("onnx").export(model.eval(), inputs, tmp_path / "file.onnx")
    with IsolatedProcess(named("onnx"), tmp_path / "file.onnx") as file:
        found = file(inputs)
        ratio = file.compare(tmp_path / "file.onnx", map_tensors(inputs, lambda tensor: tensor[:1]), 4, 1.0)
    with torch.no_grad():
        assert torch.allclose(found[0], model(*inputs)["logits"], atol=1e-5)
    assert len(found) == 3
    assert ratio.batch == 1
    assert 0.2 < ratio.ratio < 5


def test_a_network_of_one_tensor_is_exported_as_it_is() -> None:
    net = nn.Linear(2, 2).eval()
    found = flat(net, torch.zeros(3, 2))
    assert found.module is net
    assert (found.inputs, found.outputs) == (["x"], ["y"])
    assert flat(Joined("tuple").eval(), PAIR).outputs == ["y1", "y2"]
    two = flat(Joined("dict").eval(), {"picture": PAIR[0], "numbers": PAIR[1]})
    assert (two.inputs, two.outputs) == (["picture", "numbers"], ["y1", "y2", "y3"])


def test_outputs_of_a_file_get_their_structure_back() -> None:
    answer = Answer(torch.zeros(2), "a", torch.ones(2))
    again = rebuilt(answer, [torch.ones(2), torch.zeros(2)])
    assert (again.kind, again.logits.tolist(), again.hidden.tolist()) == ("a", [1, 1], [0, 0])
