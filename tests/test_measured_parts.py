"""Parts of networks are measured alone, kept for the machine and shared by its studies."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from objectives import Latency, LatencyShare, Macs
from objectives.objective import Partwise
from objectives.runtimes import OnnxRuntime
from search import DraftStart
from search.costs.work import Ends, work
from search.evaluation.measured_parts import PartsFile, measurements_folder
from search.evaluation.network_parts import ends_of, parts_of
from search.evaluation.profiling import fit_before_search
from search.results.inspection import predicted_words
from spaces.plan import architectures_of
from tests.small_study import Net, context, study

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from torch import Tensor

    from objectives.objective import Direction
    from search import StudySpec


@dataclasses.dataclass(frozen=True)
class Delay:
    """A cost that is also known of parts: a millisecond for each module and for each thousand multiply-adds."""

    inputs: Tensor = dataclasses.field(repr=False)
    conditions: str = "no runtime"
    name: ClassVar[str] = "delay_ms"
    direction: ClassVar[Direction] = "minimize"
    is_cost: ClassVar[bool] = True
    batch: ClassVar[int] = 2
    parts: ClassVar[list[Tensor]] = []

    def __call__(self, model: nn.Module) -> float:
        return self._of(model, self.inputs)

    def part_ms(self, part: nn.Module, inputs: Tensor) -> float:
        self.parts.append(inputs)
        if isinstance(part, nn.Linear):
            raise RuntimeError("this runtime refuses linear layers that are alone")
        return self._of(part, inputs)

    def of_ms(self, milliseconds: float) -> float:
        return milliseconds

    def _of(self, model: nn.Module, inputs: Tensor) -> float:
        layers = sum(isinstance(x, nn.Conv2d | nn.Linear) for x in model.modules())
        return layers + Macs(inputs[:1])(model) / 1000 + 1


def spec(conditions: str = "no runtime") -> StudySpec:
    made = study(5)
    delay = Delay(made.splits.validation.inputs, conditions)
    return dataclasses.replace(made, objectives=(made.objectives[0], delay), limits=(), start=DraftStart(4, 30))


def test_the_parts_of_a_network_are_its_modules_and_what_they_take() -> None:
    shared = context(spec())
    layers = list(shared.cost_model.frame.layers)
    blocks = nn.Sequential(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3)), nn.Flatten()).eval()
    parts = {part.columns: part for part in parts_of(blocks, torch.randn(2, 1, 8, 8), ["0.0", "0.2"])}
    assert set(parts) == {(0,), (1,), (0, 1)}
    assert parts[0, 1].module is blocks[0], "the outermost of the modules with these layers"
    assert [parts[key].ends for key in ((0,), (1,))] == [Ends(64, 3 * 36), Ends(3 * 36, 5 * 16)]
    found = parts_of(shared.subject.finished, shared.subject.example[:3], layers)
    assert sorted(part.columns for part in found) == [(0,), (1,), (2,)]
    assert all(len(part.inputs) == 3 for part in found)
    assert ends_of(shared.subject.finished, shared.subject.example[:2]) == Ends(64, 4)


def test_modules_that_are_called_twice_or_take_several_tensors_are_no_parts() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.two = nn.Linear(4, 4), nn.Bilinear(4, 4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.twice(self.twice(x)), x)  # type: ignore[no-any-return]

    assert parts_of(Odd().eval(), torch.randn(2, 4), ["twice", "two"]) == []


def test_measured_parts_are_read_as_they_were_written() -> None:
    shared = context(spec())
    delay = shared.spec.costs[0]
    assert isinstance(delay, Partwise)
    file = PartsFile.of(delay)
    assert [len(array) for array in file.read()] == [0, 0]
    parts = architectures_of(shared.cost_model.frame, [None]).parts()
    for columns, milliseconds in (((0,), 3.0), ((0, 2), 4.0)):
        file.add(parts.of_layers(columns), Ends(5, 6), milliseconds)
    with file.path.open("a") as opened:
        opened.write('{"layers": {"macs"')  # another process is writing
    found, milliseconds_S = file.read()
    assert milliseconds_S.tolist() == [3.0, 4.0]
    assert found.tolist() == [work(parts.of_layers(at), Ends(5, 6))[0].tolist() for at in ((0,), (0, 2))]
    other = PartsFile.of(Delay(delay.inputs, "another runtime"))  # type: ignore[attr-defined]
    assert other.path != file.path


def test_damaged_lines_of_measured_parts_are_left_out(tmp_path: Path) -> None:
    file = PartsFile(tmp_path / "parts.jsonl")
    parts = architectures_of(context(spec()).cost_model.frame, [None]).parts()
    file.add(parts.of_layers((0,)), Ends(1, 2), 3.0)
    whole = json.loads(file.path.read_text())
    damaged: list[object] = [{}, [], {"ms": "a"}, whole | {"ms": -1}, whole | {"ms": np.nan}, whole | {"ms": np.inf},
               whole | {"ends": 3}, whole | {"layers": 3},
               whole | {"layers": {name: ["wide"] for name in whole["layers"]}},
               whole | {"layers": {name: [np.nan] for name in whole["layers"]}}]  # fmt: skip
    lines = [*(json.dumps(one).encode() for one in damaged), b"", b"{", b"\xff\xfe\x00", b"[" * 99_999]
    with file.path.open("ab") as opened:
        opened.write(b"\n".join(lines) + b"\n")
    file.add(parts.of_layers((0,)), Ends(1, 2), 4.0)
    assert file.read()[1].tolist() == [3.0, 4.0]


def test_parts_and_networks_are_measured_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    shared = context(spec())
    fit_before_search(shared, 60.0)  # more than all of its networks take
    model = shared.cost_model.models["delay_ms"]
    assert len(model.parts.values_S) > 5
    assert all(len(inputs) == Delay.batch for inputs in Delay.parts)
    assert f"networks and {len(model.parts.values_S)} parts" in capsys.readouterr().err.replace("\n", " ")
    assert model.error < 0.1
    (line,) = predicted_words(context(spec()))
    assert line.startswith("delay_ms, predicted within ")
    assert "Ranks at strength 0.5" in line


def test_parts_are_shared_by_studies_of_other_networks() -> None:
    fit_before_search(context(spec()), 1.0)
    files = list(measurements_folder().glob("parts-*.jsonl"))
    assert len(files) == 1
    torch.manual_seed(3)
    other = dataclasses.replace(spec(), teacher=nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), Rest()).eval())
    shared = context(other)
    fit_before_search(shared, 0.0)
    model = shared.cost_model.models["delay_ms"]
    assert len(model.values_N) == 1
    assert len(model.parts.values_S) == len(files[0].read_text().splitlines())


def test_latency_is_measured_on_parts() -> None:
    torch.manual_seed(0)
    teacher = Net().eval()
    latency = Latency(OnnxRuntime(), teacher, torch.randn(1, 1, 8, 8), rounds=5, block_ms=0.5)
    share = LatencyShare(latency)
    assert isinstance(latency, Partwise)
    assert isinstance(share, Partwise)
    assert latency.conditions == share.conditions == "OnnxRuntime(threads=1), batch 1"
    part = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU()).eval()
    milliseconds = share.part_ms(part, torch.randn(1, 64, 32, 32))
    assert milliseconds > latency.part_ms(nn.ReLU().eval(), torch.randn(1, 4)) > 0
    assert latency.of_ms(2.0) == 2.0
    assert share.of_ms(latency.of_reference()) == 1.0


class Rest(nn.Module):
    """Pools and classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]
