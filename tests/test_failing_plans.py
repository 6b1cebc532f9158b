"""A plan that fails is one refused plan with its reason; a fault of the machine ends the run and blames no plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import torch

from search import Budget, DraftStart
from search.cli import main
from search.evaluation.context import Context
from search.evaluation.reference import bounded
from search.evaluation.subject import Subject
from search.loop.run import run
from search.proposals.defaults import resolved
from search.study.errors import MachineFault, UserError, reason_of
from search.study.front import trained
from search.study.records import REASON, SENSITIVITIES
from search.study.storage import open_study
from spaces import Prune, PruneRatios, Space, Temperatures
from tests.small_study import study as small_study

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from optuna import Study
    from optuna.trial import BaseTrial
    from torch import Tensor, nn

    from search import StudySpec
    from spaces import Anatomy
    from spaces.costs.architectures import Architectures
    from spaces.plan import Choice


@dataclass(frozen=True, slots=True)
class Breaking:
    """Pruning that cannot be applied where it removes much."""

    step: Prune
    above: float
    error: type[BaseException]

    def apply(self, model: nn.Module, example: Tensor) -> nn.Module:
        if max(ratio for _, ratio in self.step.ratios) > self.above:
            raise self.error("the kernel has no such width")
        return self.step.apply(model, example)

    def apply_to_shapes(self, architectures: Architectures, row: int) -> None:
        self.step.apply_to_shapes(architectures, row)

    def choices(self, anatomy: Anatomy) -> dict[str, dict[str, Choice]]:
        return self.step.choices(anatomy)

    def words(self) -> str:
        return self.step.words()


@dataclass(frozen=True, slots=True)
class BreakingRatios:
    """Ratios of which the larger ones fail."""

    above: float
    error: type[BaseException]
    ratios: PruneRatios = field(default_factory=PruneRatios)

    def suggest(self, trial: BaseTrial, anatomy: Anatomy) -> Breaking:
        return Breaking(self.ratios.suggest(trial, anatomy), self.above, self.error)

    def uniform(self, anatomy: Anatomy, strength: float) -> dict[str, float]:
        return self.ratios.uniform(anatomy, strength)

    def acts_on(self, anatomy: Anatomy) -> Mapping[str, str]:
        return self.ratios.acts_on(anatomy)


def spec(above: float, error: type[BaseException] = RuntimeError, trials: int = 2) -> StudySpec:
    space = Space(steps=(BreakingRatios(above=above, error=error),), recovery=Temperatures())
    start = DraftStart(plans=2, scored=12)
    return dataclasses.replace(small_study(trials), space=space, start=start, budget=Budget(trials=trials), limits=())


def ran(found: StudySpec, folder: Path) -> Study:
    found = resolved(found)
    study = open_study(found, folder, None, create=True)
    run(study, bounded(study, Context(found, Subject(found, torch.device("cpu")))), folder)
    return study


def test_plans_that_fail_are_refused_and_the_others_are_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = ran(spec(above=0.5), tmp_path)
    assert len(trained(study)) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "the sensitivity table: a plan failed (channels -75%" in printed
    assert "RuntimeError: the kernel has no such width" in printed
    largest = [max(losses) for losses in study.user_attrs[SENSITIVITIES]]
    assert largest == [1e9] * len(largest)
    assert all(min(losses[1:]) < 1e3 for losses in study.user_attrs[SENSITIVITIES])


def test_a_study_whose_plans_all_fail_ends_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all 6 plans failed, most often with RuntimeError: the kernel has no such wid"):
        ran(spec(above=0.0), tmp_path)


@pytest.mark.parametrize("error", [MemoryError, OSError, torch.OutOfMemoryError])
def test_a_fault_of_the_machine_is_not_charged_to_a_plan(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(MachineFault, match="the machine failed, not a plan"):
        ran(spec(above=0.5, error=error), tmp_path)


def test_an_interrupt_is_not_charged_to_a_plan(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ran(spec(above=0.5, error=KeyboardInterrupt), tmp_path)


def test_a_full_disk_that_a_library_reports_in_words_is_a_fault_of_the_machine() -> None:
    with pytest.raises(MachineFault):
        reason_of(RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'))
    assert reason_of(ValueError()) == "ValueError: no message"


def test_a_trial_that_meets_a_fault_of_the_machine_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [True]
    before = Context.train

    def train(*arguments: object) -> None:
        if failing:
            failing.clear()
            raise OSError(28, "No space left on device")
        before(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Context, "train", train)
    with pytest.raises(MachineFault, match="No space left on device"):
        ran(spec(above=1.0), tmp_path)
    study = ran(spec(above=1.0), tmp_path)
    assert len(trained(study)) == 2
    assert not [trial for trial in study.trials if REASON in trial.user_attrs]


def test_the_command_reports_a_fault_of_the_machine_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("search.commands.searching.prepared", fail)
    assert main(["run", "tests/small_study.py:study", "--folder", str(tmp_path)]) == 2
    assert "the machine failed, not a plan: MemoryError; all finished work is kept" in " ".join(
        capsys.readouterr().err.split()
    )
