"""Predicted sizes that are calibrated on the files of the teacher and of three plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import optuna
import pytest
import torch
from torch import Tensor, nn

from objectives import Examples, SizeBytes
from objectives.runtimes import ExportError, OnnxRuntime
from search import Budget, Splits, StudySpec
from search.evaluation.measured_parts import MEASUREMENTS_VARIABLE
from search.evaluation.reference import prepared
from search.evaluation.size_calibration import sample_plans
from search.study.budget_clock import BudgetClock
from spaces import BitWidths, Depth, PruneRatios, Ranks, Space, Temperatures
from spaces.plan import Removing
from studies.file_sizes import uncalibrated

if TYPE_CHECKING:
    from pathlib import Path

    from objectives.objective import Objective
    from objectives.runtimes import Runtime
    from objectives.runtimes.file_layout import FileLayout
    from objectives.trees import Tree

WIDTH, PLANS = 32, 6
# rounded inputs would be another kind of rounded layer, of which three plans tell less
SPACE = Space((PruneRatios(), Depth(), Ranks(), BitWidths(activations=(32,), runtime=OnnxRuntime())), Temperatures())
# a rounded layer and a factor between operators that need conversions, and norms of which files hold half
ELSEWHERE = replace(OnnxRuntime().layout, graph=300, floating=160, linear_factor=-110, tensor=90, outside=3.6)


@dataclass(frozen=True)
class Written(OnnxRuntime):
    """A runtime whose files are as large as another layout says, and hold nothing."""

    files: ClassVar[list[Path]] = []
    hidden: FileLayout = ELSEWHERE

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        del example
        self.files.append(path)
        path.write_bytes(bytes(round(uncalibrated(self.hidden)(model))))


@dataclass(frozen=True)
class Refusing(Written):
    """One that writes the teacher's file alone."""

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        if "teacher" not in path.name:
            raise ExportError("no")
        super().export(model, example, path)


class Block(nn.Module):
    """A norm and two layers, with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(self.norm(x))))  # type: ignore[no-any-return]


def study(runtime: Runtime) -> StudySpec:
    """Return a study of four blocks."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, WIDTH), *(Block() for _ in range(4)), nn.Linear(WIDTH, 4)).eval()
    data = Examples(torch.randn(32, 8), None)
    return StudySpec(
        "sizes", network, Splits(data, data, data), SPACE, objectives=(SizeBytes(runtime),), runtime=runtime
    )


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave out the comparison of the teacher's file with the network: the files hold nothing. No sizes are known."""
    monkeypatch.setenv(MEASUREMENTS_VARIABLE, str(tmp_path / "measured"))
    monkeypatch.setattr("search.evaluation.reference.compared", lambda *_: None)
    Written.files.clear()


def test_three_plans_tell_what_layers_and_norms_add_to_the_files_of_all(tmp_path: Path) -> None:
    spec, runtime = study(Written()), Written()
    context, path = prepared(spec, torch.device("cpu"), tmp_path)
    subject, size = context.subject, context.spec.objectives[0]
    assert len(Written.files) == 4
    assert size(subject.finished) == pytest.approx(path.stat().st_size)
    on_teacher = SizeBytes(runtime).calibrated((subject.finished, path.stat().st_size))
    errors: dict[Objective, list[float]] = {size: [], on_teacher: []}
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(1))
    for _ in range(PLANS):
        plan = SPACE.suggest(random.ask(), subject.anatomy)
        finished = subject.finish(context.build(plan).eval())
        runtime.export(finished, None, tmp_path / "plan")
        real = (tmp_path / "plan").stat().st_size
        for objective, found in errors.items():
            found.append(abs(objective(finished) / real - 1))
        assert context.cost_model.predict(plan).exact["size_bytes"] == pytest.approx(size(finished))
    assert max(errors[size]) < 0.02
    assert max(errors[on_teacher]) > 0.05


def test_what_was_read_off_is_kept_beside_the_file_of_the_teacher(tmp_path: Path) -> None:
    first, _ = prepared(study(Written()), torch.device("cpu"), tmp_path)
    written = len(Written.files)
    again, _ = prepared(study(Written()), torch.device("cpu"), tmp_path)
    assert len(Written.files) == written
    assert again.spec.objectives == first.spec.objectives


@pytest.mark.parametrize(("minutes", "files"), [(1e-6, 1), (10, 4), (None, 4)])
def test_in_a_short_time_the_file_of_the_teacher_alone_is_used(
    minutes: float | None, files: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = BudgetClock(Budget(1, minutes=minutes))
    context, path = prepared(study(Written()), torch.device("cpu"), tmp_path, clock)
    assert context.spec.objectives[0](context.subject.finished) == pytest.approx(path.stat().st_size)
    assert len(Written.files) == files
    assert ("calibrated on the teacher's file alone" in capsys.readouterr().err) == (files == 1)
    prepared(study(Written()), torch.device("cpu"), tmp_path)
    assert len(Written.files) == 4, "what was left out is made up for"


def test_a_plan_whose_export_fails_calibrates_nothing(tmp_path: Path) -> None:
    context, path = prepared(study(Refusing()), torch.device("cpu"), tmp_path)
    assert context.spec.objectives[0](context.subject.finished) == pytest.approx(path.stat().st_size)


def test_only_the_random_one_of_the_three_plans_leaves_layers_out() -> None:
    plans = sample_plans(SPACE, SPACE.trace(study(Written()).teacher, torch.randn(32, 8)))
    removed = [step.removed for plan in plans for step in plan.steps if isinstance(step, Removing)]
    assert [len(layers) > 0 for layers in removed] == [False, False, True]


def test_equal_plans_are_exported_once() -> None:
    space = Space((BitWidths(runtime=OnnxRuntime()),), Temperatures())
    assert len(sample_plans(space, space.trace(study(Written()).teacher, torch.randn(32, 8)))) == 2


def test_a_layout_that_is_right_is_corrected_by_the_file_of_the_teacher_alone(tmp_path: Path) -> None:
    runtime = Written(hidden=replace(ELSEWHERE, floating=62, linear_factor=44, tensor=0, outside=4))
    context, _ = prepared(study(runtime), torch.device("cpu"), tmp_path)
    assert len(Written.files) == 4
    size, layout = cast("SizeBytes", context.spec.objectives[0]), runtime.layout
    assert (size.layout.floating, size.layout.linear_factor) == pytest.approx((layout.floating, layout.linear_factor))


def test_files_that_store_shared_numbers_once_correct_nothing() -> None:
    finished = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    whole = SizeBytes()(finished)
    assert SizeBytes().calibrated((finished, whole - 4 * 64 * 64)) == SizeBytes()
    assert SizeBytes().calibrated((finished, whole - 100))(finished) == whole - 100
