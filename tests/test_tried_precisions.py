"""Precisions that a runtime fails at in their place are found before a search, and not offered there."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import optuna
import pytest
import torch

from objectives import SizeBytes, Top1
from objectives.layers import LowPrecision
from objectives.runtimes import ExportError, OnnxRuntime, Precision
from search.evaluation import tried_precisions
from search.evaluation.tried_precisions import leave_out_failing, try_precisions
from search.results.confirm import weights_of
from search.results.inspection import inspection
from search.results.plan_json import encode
from search.results.recorded import restored
from search.study.budget_clock import BudgetClock
from search.study.front import front
from search.study.records import DESIGNS, DRAFT, FAILING, STARTED
from search.study.spec import Budget
from spaces import BitWidths, PruneRatios, Space, Temperatures
from tests import small_study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study
    from torch import nn

    from objectives.trees import Tree
    from search import StudySpec
    from search.evaluation.context import Context

ROUNDED = [(8, 8), (4, 8), (2, 8)]


@dataclasses.dataclass(frozen=True)
class Picky(OnnxRuntime):
    """ONNX Runtime that fails where all of these layers have inputs of 8 bits and weights of at most these bits."""

    layers: tuple[str, ...] = ("second",)
    weights: int = 8
    wrong: bool = False

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        found = [layer for name, layer in model.named_modules() if name in self.layers]
        fails = all(
            isinstance(x, LowPrecision) and x.activation_bits == 8 and x.weight_bits <= self.weights for x in found
        )
        if fails and not self.wrong:
            raise ExportError("no kernel\nand more")
        if fails:
            model = copy.deepcopy(model)
            with torch.no_grad():
                dict(model.named_modules())["head"].bias += 100
        super().export(model, example, path)


@dataclasses.dataclass(frozen=True)
class Missing(OnnxRuntime):
    """A runtime that is not installed."""

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        raise ImportError("install the extra")


@dataclasses.dataclass(frozen=True)
class Failing(OnnxRuntime):
    """A runtime that fails with every network."""

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        raise ExportError("no kernel at all")


def spec(runtime: OnnxRuntime, trials: int = 3) -> StudySpec:
    found = small_study.study(trials)
    space = Space((PruneRatios(), BitWidths(runtime=runtime)), Temperatures())
    objectives = (Top1(found.splits.validation), SizeBytes(OnnxRuntime()))
    return dataclasses.replace(found, space=space, objectives=objectives, limits=())


def tried(runtime: OnnxRuntime, clock: BudgetClock | None = None) -> tuple[Context, Study]:
    shared, study = small_study.context(spec(runtime)), optuna.create_study()
    try_precisions(study, shared, clock)
    return shared, study


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (OnnxRuntime(), {}),
        (Picky(), {"second": ROUNDED}),
        (Picky(wrong=True), {"second": ROUNDED}),
        (Picky(weights=2), {"second": [(4, 8), (2, 8)]}),  # the widest, 8/8, was tried and works
        (Picky(layers=("first", "second")), {"first": ROUNDED, "second": ROUNDED}),
    ],
    ids=str,
)
def test_what_fails_is_found_and_not_offered(runtime: OnnxRuntime, expected: dict[str, list[tuple[int, int]]]) -> None:
    shared, study = tried(runtime)
    found = {name: sorted(map(tuple, pairs), reverse=True) for name, pairs in study.user_attrs[FAILING].items()}
    assert found == expected
    offered = shared.spec.space.steps[1].offered(shared.subject.anatomy)  # type: ignore[attr-defined]
    assert set(expected.get("second", [])).isdisjoint(offered["second"])
    assert (8, 32) in offered["second"]
    assert ((2, 8) in offered["first"]) == ("first" not in expected)


@pytest.mark.slow
def test_it_is_said_by_name_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    shared, _ = tried(Picky())
    said = " ".join(capsys.readouterr().err.split())
    words = "onnx fails with 8/8 bits of weights/inputs in second, so that these precisions are not offered there: no k"
    assert words in said
    table = inspection(shared.spec, shared.subject.anatomy)
    assert "not 8/8, 4/8, 2/8, which failed here" in table.to_string()


def test_a_layer_that_fails_at_all_precisions_is_not_quantized() -> None:
    shared = small_study.context(spec(OnnxRuntime()))
    pairs = shared.spec.space.steps[1].offered(shared.subject.anatomy)["head"]  # type: ignore[attr-defined]
    anatomy = shared.subject.anatomy.without({"head": pairs[1:]})
    words = shared.spec.space.steps[1].acts_on(anatomy)["head"]
    assert words == "no: OnnxRuntime failed here with 8/32, 8/8, 4/32, 4/8, 2/32, 2/8 (bits of weights/inputs)"
    assert "precision/head" not in shared.spec.space.uniform(anatomy, (1.0, 1.0))


@pytest.mark.slow
def test_a_study_without_what_fails_is_restored_as_it_was(tmp_path: Path) -> None:
    runtime = Picky()
    study = small_study.searched(spec(runtime), tmp_path)
    again = small_study.context(spec(runtime))
    leave_out_failing(study, again.subject)
    for trial in front(study):
        plan, _ = restored(trial, again, weights_of(tmp_path, trial))
        assert not any(name == "second" and inputs == 8 for name, _, inputs in plan.steps[1].widths)  # type: ignore[attr-defined]
        assert encode(plan)


@pytest.mark.parametrize("began", ["designs", "started", "trial", "draft"])
def test_an_earlier_study_keeps_what_it_offers(began: str) -> None:
    shared, study = small_study.context(spec(Picky())), optuna.create_study()
    if began in {"designs", "started"}:
        study.set_user_attr({"designs": DESIGNS, "started": STARTED}[began], [])
    elif began == "trial":
        study.add_trial(optuna.trial.create_trial(values=[0.0]))
    else:
        optuna.create_study(storage=study._storage, study_name=study.study_name + DRAFT)
    try_precisions(study, shared)
    assert FAILING not in study.user_attrs
    assert not any(layer.failing for layer in shared.subject.anatomy.layers)


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (Missing(), "precisions are not tried: install the extra"),
        (Failing(), "precisions are not tried: onnx fails with the teacher too: no kernel at all"),
    ],
    ids=str,
)
def test_precisions_are_not_blamed_for_what_they_did_not_do(
    runtime: OnnxRuntime, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, study = tried(runtime)
    assert study.user_attrs[FAILING] == {}
    assert words in " ".join(capsys.readouterr().err.split())


def test_little_time_is_taken_of_a_short_budget(capsys: pytest.CaptureFixture[str]) -> None:
    _, study = tried(Picky(weights=2), BudgetClock(Budget(cpu_seconds=0.5)))
    assert study.user_attrs[FAILING] == {}
    assert "2 of 3 sets are not tried: the time is short" in capsys.readouterr().err


def test_what_is_not_narrowed_down_is_offered_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tried_precisions, "MOST_TRIES", 3)
    _, study = tried(Picky())
    assert study.user_attrs[FAILING] == {}
    assert "after 3 tries it is not known in which of these layers" in " ".join(capsys.readouterr().err.split())


@dataclasses.dataclass(frozen=True)
class Unlucky(OnnxRuntime):
    """ONNX Runtime whose first export fails."""

    calls: list[int] = dataclasses.field(default_factory=list)

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        self.calls.append(1)
        if len(self.calls) == 1:
            raise ExportError("ended: exit code -9")
        super().export(model, example, path)


@pytest.mark.slow
def test_a_fault_that_does_not_come_again_is_not_blamed_on_precisions() -> None:
    _, study = tried(Unlucky())
    assert study.user_attrs[FAILING] == {}


@dataclasses.dataclass(frozen=True)
class Whole(OnnxRuntime):
    """A runtime of integers alone, which fails where one convolution is of integers and another is not."""

    @property
    def integers_only(self) -> bool:
        return True

    def precisions(self, kind: str, groups: int) -> tuple[Precision, ...]:
        return (Precision(4, 8), Precision(8, 8)) if kind == "Conv2d" else ()

    def export(self, model: nn.Module, example: Tree, path: Path) -> None:
        found = {isinstance(x, LowPrecision) for name, x in model.named_modules() if name in {"first", "second"}}
        if len(found) > 1:
            raise ExportError("integers beside floats")
        super().export(model, example, path)


@pytest.mark.slow
def test_a_runtime_of_integers_alone_is_not_tried_with_floats_between_them() -> None:
    shared, study = tried(Whole())
    assert study.user_attrs[FAILING] == {}
    assert shared.spec.space.steps[1].offered(shared.subject.anatomy)["second"] == ((8, 8), (4, 8))  # type: ignore[attr-defined]
