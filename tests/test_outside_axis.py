"""An axis and an objective from a user's own files work everywhere in a study, as the built-in ones do."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from optuna.trial import FixedTrial

from objectives import Bops, Macs, Parameters, SizeBytes, Top1
from objectives.finished_layers import layers_in
from search import Budget, DraftStart
from search.costs.cost_model import CostModel
from search.evaluation.reference import prepared
from search.export import rebuild
from search.proposals.defaults import resolved
from search.proposals.draft_records import draft_of
from search.proposals.uniform_start import UniformStart
from search.results.confirm import weights_of
from search.results.export import export
from search.results.file_records import with_records
from search.results.inspection import inspection
from search.results.recorded import restored
from search.results.report import report
from search.study.attributes import numbers_of
from search.study.cleaning import Cleaning
from search.study.front import front
from search.study.records import INEXACT, VALUES
from spaces import BitWidths, Depth, Distill, Plan, PruneRatios, Ranks, Space, Temperatures, deployed, trace
from spaces.testing import AxisContract, ObjectiveContract
from spaces.testing.networks import NETWORKS, Net, Plain, Residual, Separable, Straight, example, teacher
from tests.outside_axis import CropKernels, KernelSizes
from tests.outside_groups import Groups
from tests.outside_objective import Energy
from tests.small_study import searched, study

if TYPE_CHECKING:
    import numpy as np
    from optuna import Study
    from torch import nn

    from objectives.layers import Parts
    from search import StudySpec
    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock

STEPS = PruneRatios(), Depth(), KernelSizes(), Ranks(), BitWidths(weights=(2, 4, 8), activations=(8,))
ROOT = Path(__file__).parent.parent


class TestKernelSizes(AxisContract):
    axis = KernelSizes()
    networks = (Plain, Residual, Separable, Straight)


class TestGroups(AxisContract):
    axis = Groups()
    networks = (Plain, Residual, Separable, Straight)


class TestGroupsBehindRanks(AxisContract):
    axis = Groups()
    before, after = (PruneRatios(), Depth(), Ranks()), (BitWidths(),)
    networks = (Plain, Residual, Separable, Straight)


class TestEnergy(ObjectiveContract):
    def make(self) -> Energy:
        return Energy(example(teacher(Plain)))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_costs_are_exact_with_every_other_axis(kind: type[Net], seed: int) -> None:
    net, inputs = teacher(kind), example(teacher(kind))
    anatomy = trace(net, inputs)
    space = Space(STEPS, Temperatures())
    strengths = torch.rand(len(STEPS), generator=torch.Generator().manual_seed(seed)).tolist()
    plan = space.suggest(FixedTrial(space.uniform(anatomy, tuple(strengths))), anatomy)
    costs = Macs(inputs), Bops(inputs), Parameters(), SizeBytes(), Energy(inputs)
    finished = deployed(plan.apply(net, inputs), inputs)
    predicted = CostModel(anatomy, deployed(net, inputs), costs).predict(plan).exact
    assert predicted == pytest.approx({cost.name: cost(finished) for cost in costs})


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_formula_over_layers_gives_a_finished_network_the_costs_of_our_objectives(kind: type[Net]) -> None:
    net, inputs = teacher(kind), example(teacher(kind))
    anatomy = trace(net, inputs)
    space = Space(STEPS, Temperatures())
    plan = space.suggest(FixedTrial(space.uniform(anatomy, (0.5,) * len(STEPS))), anatomy)
    finished = deployed(plan.apply(net, inputs), inputs)
    for cost in (Macs(inputs), Bops(inputs), Parameters()):
        assert cost.foreseen(layers_in(finished, inputs)).tolist() == [cost(finished)]


def start(context: Context, study: Study, clock: BudgetClock) -> list[dict[str, float]]:
    """Return the best plans of a draft, and one plan that certainly crops a kernel."""
    best = DraftStart(plans=4, scored=60)(context, study, clock)
    return [*best, best[0] | {"kernel/first": 1, "prune/second": 0.25, "weight_bits/first": 8}]


def spec() -> StudySpec:
    """Return a small study with the axis in its space, and the objective among its objectives."""
    base = study(6)
    inputs = base.splits.validation.inputs
    return dataclasses.replace(
        base,
        space=Space(STEPS, Temperatures()),
        objectives=(Top1(base.splits.validation), Energy(inputs)),
        limits=(),
        reported=(SizeBytes(), Macs(inputs)),
        start=start,
        budget=Budget(6),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside")


@pytest.fixture(scope="module")
def found(home: Path) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cleaning, "clean", lambda _: None)  # the tests take members that are not on the front
        return searched(spec(), home)


def test_inspect_lists_what_the_axis_can_do_with_each_layer(home: Path) -> None:
    context, _ = prepared(resolved(spec()), torch.device("cpu"), home)
    table = inspection(context.spec, context.subject.anatomy).set_index("layer")
    assert table.loc["first", "KernelSizes"] == "whole, middle row or middle of its kernel"
    assert str(table.loc["head", "KernelSizes"]).startswith("no: ")


def test_a_study_drafts_and_trains_plans_of_the_axis_with_exact_costs(found: Study) -> None:
    draft = draft_of(found)
    assert draft is not None
    drawn = {trial.params["kernel/first"] for trial in draft.trials}
    assert len(drawn) > 1, "the draft uses the axis"
    trained = [trial for trial in found.trials if numbers_of(trial, VALUES)]
    assert len(trained) >= 6
    assert any(trial.params["kernel/first"] for trial in trained)
    assert not any(INEXACT in trial.user_attrs for trial in trained)


def test_a_member_is_reported_exported_verified_and_restored(found: Study, home: Path) -> None:
    context, reference = prepared(resolved(spec()), torch.device("cpu"), home)
    cropped = [trial for trial in found.trials if numbers_of(trial, VALUES) and trial.params["kernel/first"]]
    member = next((trial for trial in front(found) if trial in cropped), cropped[0])
    plan = context.plan(member.params)
    assert "kernels first " in plan.words()
    assert plan.choices(context.subject.anatomy)["kernel kept"]["first"].word in {"row", "middle"}
    written = report(found, context, with_records([member], context.spec.runtime, home), home, home / "report")
    assert home / "report" / f"plan-{member.number}.png" in written
    record = export(member, context, weights_of(home, member), home / "out", reference)
    assert record["agreement_percent"] >= 99
    _, network = restored(member, context, weights_of(home, member))
    again = rebuild(spec().teacher, home / "out", kinds=(CropKernels,))
    inputs = spec().splits.validation.inputs
    with torch.no_grad():
        assert torch.equal(again(inputs), network(inputs))


@pytest.mark.parametrize("word", ["KernelSizes", "CropKernels", "KernelRung", "kernel/", "Energy"])
def test_no_file_of_the_library_refers_to_them(word: str) -> None:
    ours = [path for folder in ("spaces", "search", "objectives") for path in (ROOT / folder).rglob("*.py")]
    assert len(ours) > 100
    assert not [path for path in ours if word in path.read_text()]


def test_a_step_that_crops_nothing_changes_nothing() -> None:
    net: Any = teacher(Residual)
    none = Plan((CropKernels((("stem", 0),)),), Distill())
    assert torch.equal(none.apply(net, example(net))(example(net)), net(example(net)))


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class WrongEnergy(Energy):
    """A formula that does not hold, such as one that forgets what an axis does."""

    def foreseen(self, parts: Parts) -> np.ndarray:
        return 1.5 * Energy.foreseen(self, parts)

    def __call__(self, model: nn.Module) -> float:
        return float(Energy.foreseen(self, layers_in(model, self.example))[0])


def test_a_formula_that_does_not_hold_is_reported_with_its_plan_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = dataclasses.replace(spec(), start=UniformStart(), budget=Budget(3))
    wrong = WrongEnergy(base.splits.validation.inputs)
    searched(dataclasses.replace(base, objectives=(base.objectives[0], wrong)), tmp_path)
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(r"trial \d \(.*distil .*\): energy_nanojoules is [\d.,]+, computed as -?[\d.,]+", printed)
    assert "energy_nanojoules of this network cannot be computed exactly" in printed
