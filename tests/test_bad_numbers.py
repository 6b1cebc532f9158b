"""Numbers that cannot be meant are refused before anything runs: settings, options, data and weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.utils.data import DataLoader, Dataset

from objectives import Examples, FrameTime, Limit, Parameters, TopK, fps
from objectives.runtimes import ExecuTorch, LiteRt, OnnxRuntime
from search import Budget, DraftStart, Recipe, TableStart
from search.cli import main
from search.study.errors import MachineFault, UserError, reason_of
from spaces import (
    BitWidths,
    Distill,
    Imitate,
    Imitations,
    KMeans,
    Magnitude,
    PruneRatios,
    Ranks,
    Resolution,
    Space,
    Svd,
    Temperatures,
)
from tests import small_study
from tests.small_study import context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from objectives.objective import Direction
    from search import StudySpec

NAN, INF = math.nan, math.inf
STUDY = "my_study.py:study"
SMALL = small_study.study()


def with_axis(axis: Any) -> StudySpec:
    return dataclasses.replace(SMALL, space=Space(steps=(axis,), recovery=Temperatures()))


def with_recovery(recovery: Any) -> StudySpec:
    return dataclasses.replace(SMALL, space=Space(steps=(PruneRatios(),), recovery=recovery))


# What takes a number, and numbers that it does not take.
SETTINGS: dict[str, tuple[Callable[[Any], object], tuple[Any, ...]]] = {
    "epochs": (lambda x: Recipe(epochs=x), (NAN, INF, -1, 1e300, True, "3", None)),
    "batch_size": (lambda x: Recipe(batch_size=x), (NAN, 2.5, 0, -8, True, "8", 10**30)),
    "learning_rate": (lambda x: Recipe(learning_rate=x), (NAN, INF, -INF, 0, -1e-3, True, "1e-3", 1e300)),
    "weight_decay": (lambda x: Recipe(weight_decay=x), (NAN, INF, -1e-4, True, "0", None)),
    "trials": (lambda x: Budget(trials=x), (NAN, 0, -1, 2.5, True, "4", 10**30, np.int64(3))),
    "minutes": (lambda x: Budget(minutes=x), (NAN, INF, 0, -1, True, "5", 1e300, np.float32(2))),
    "cpu_seconds": (lambda x: Budget(cpu_seconds=x), (NAN, INF, 0, -1, True, "5", 1e300)),
    "calibration": (lambda x: dataclasses.replace(SMALL, calibration=x), (NAN, 0, -1, 2.5, True, "64", 10**30)),
    "seed": (lambda x: dataclasses.replace(SMALL, seed=x), (NAN, -1, 2**32, 1.5, True, "0", None)),
    "epochs of a confirmation": (
        lambda x: dataclasses.replace(SMALL, recipe=Recipe(epochs=x, learning_rate=0.1)), (5e5,),
    ),
    "at_most": (lambda x: Limit(Parameters(), at_most=x), (NAN, INF, 0, -1, True, "9", np.float32(3), 10**400)),
    "at_least": (lambda x: Limit(Parameters(), at_least=x), (NAN, INF, -INF, 0, False)),
    "of_teacher": (lambda x: Limit(Parameters(), of_teacher=x), (NAN, INF, 0, -0.5)),
    "lose_at_most": (lambda x: Limit(Parameters(), lose_at_most=x), (NAN, INF, -1)),
    "plans of a draft": (lambda x: DraftStart(plans=x), (NAN, 0, -1, 2.5, True)),
    "scored": (lambda x: DraftStart(scored=x), (NAN, 0, -1, 2.5, True)),
    "share": (lambda x: DraftStart(share=x), (NAN, 0, -0.1, 1.5, INF)),
    "plans of a table": (lambda x: TableStart(plans=x), (NAN, 0, -1, 2.5)),
    "k": (lambda x: TopK(SMALL.splits.validation, x), (NAN, 0, -1, 2.5, True, "5")),
    "threads of ONNX Runtime": (lambda x: OnnxRuntime(threads=x), (NAN, 0, -1, 2.5, True, 10**6)),
    "threads of LiteRT": (lambda x: LiteRt(threads=x), (NAN, 0, -1, 2.5, True, 10**6)),
    "threads of ExecuTorch": (lambda x: ExecuTorch(threads=x), (NAN, 0, -1, 2.5, True, 10**6)),
    "frames": (lambda x: FrameTime(OnnxRuntime(), torch.zeros(3, 2), x), (NAN, 0, -1)),
    "fps": (lambda x: fps(OnnxRuntime(), torch.zeros(3, 2), at_least=x), (NAN, 0, -1, INF)),
    "highest": (lambda x: PruneRatios(highest=x), (NAN, INF, 0, -0.5, 1)),
    "step of ratios": (lambda x: PruneRatios(step=x), (NAN, INF, 0, -0.1, 1e-12)),
    "round_to": (lambda x: PruneRatios(round_to=x), (NAN, 0, -8, 2.5, True)),
    "refit": (lambda x: with_axis(PruneRatios(refit=x)), ("no", None, 1)),
    "only": (lambda x: with_axis(PruneRatios(only=x)), ("first", ["first"], (1,))),
    "lowest rank": (lambda x: Ranks(lowest=x), (NAN, INF, 0, -0.5, 1)),
    "step of ranks": (lambda x: Ranks(step=x), (NAN, INF, 0, 1, 1e-12)),
    "weights": (lambda x: BitWidths(weights=(x,)), (NAN, 0, 1, 9, 2.5, True)),
    "activations": (lambda x: BitWidths(activations=(x,)), (NAN, 0, 3, 9, 4.5, True)),
    "lowest size": (lambda x: Resolution(lowest=x), (NAN, INF, 0, -0.5, 1)),
    "step of sizes": (lambda x: Resolution(step=x), (NAN, INF, 0, -0.5, 1e-12)),
    "lowest temperature": (lambda x: Temperatures(lowest=x), (NAN, INF, 0, -1)),
    "highest temperature": (lambda x: Temperatures(highest=x), (NAN, INF, 0, -1)),
    "heaviest": (lambda x: Temperatures(heaviest=x), (NAN, INF, -0.1, 1.1)),
    "ignore_index": (lambda x: with_recovery(Temperatures(ignore_index=x)), (NAN, 2.5, "255")),
    "temperature": (lambda x: Distill(temperature=x), (NAN, 0, -1)),
    "weight": (lambda x: Imitate(weight=x), (NAN, -0.1, 1.1)),
    "norm": (lambda x: Imitations(norm=x), (NAN, 0, 3)),
    "norm of weights": (lambda x: Magnitude(norm=x), (NAN, 0, 3)),
    "sample": (lambda x: KMeans(sample=x), (NAN, 0, -1, 2.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_a_number_that_cannot_be_meant_is_refused_in_one_line(name: str) -> None:
    make, values = SETTINGS[name]
    for value in values:
        with pytest.raises(ValueError, match="but got") as error:
            make(value)
        assert "\n" not in str(error.value)


# Objects of another kind, and what a message says that they must be.
OBJECTS: dict[str, tuple[Callable[[], object], str]] = {
    "a class as network": (lambda: replaced(teacher=small_study.Net), "teacher of StudySpec must be a network"),
    "a number as network": (lambda: replaced(teacher=3), "teacher of StudySpec must be a network"),
    "a pair as splits": (lambda: replaced(splits=(1, 2)), "splits of StudySpec must be Splits"),
    "tensors as a split": (
        lambda: replaced(splits=dataclasses.replace(SMALL.splits, test=(torch.zeros(2), torch.zeros(2)))),
        "test of Splits must be examples",
    ),
    "axes as space": (lambda: replaced(space=(PruneRatios(),)), "space of StudySpec must be a Space"),
    "a class as axis": (lambda: replaced(space=made(Space, (Ranks,), Ranks())), "each value in steps of Space must"),
    "one axis": (lambda: replaced(space=made(Space, PruneRatios(), Temperatures())), "steps of Space must be a tuple"),
    "an axis as recovery": (lambda: replaced(space=made(Space, (PruneRatios(),), Ranks())), "recovery of Space"),
    "a number as recipe": (lambda: replaced(recipe=3), "recipe of StudySpec must be a Recipe"),
    "a number as budget": (lambda: replaced(budget=3), "budget of StudySpec must be a Budget"),
    "a name as runtime": (lambda: replaced(runtime="onnx"), "runtime of StudySpec must be a runtime"),
    "a name as sampler": (lambda: replaced(sampler="tpe"), "sampler of StudySpec must be a function"),
    "a number as goal": (lambda: replaced(goal=4), "goal of StudySpec must be a text"),
    "a limit of numbers": (lambda: replaced(limits=(3,)), "each value in limits of StudySpec must be a Limit"),
    "a class as objective": (lambda: replaced(reported=(Parameters,)), "each value in reported of StudySpec"),
    "a name as augmentation": (lambda: made(Recipe, augment="flip"), "augment of Recipe must be a function"),
    "a name as optimizer": (lambda: made(Recipe, optimizer="sgd"), "optimizer of Recipe must be a function"),
    "a name as importance": (
        lambda: with_axis(made(PruneRatios, importance="l1")), "importance of PruneRatios must be an importance",
    ),
    "a class as decomposition": (lambda: with_axis(made(Ranks, decomposition=Svd)), "decomposition of Ranks must be"),
    "a name as grid": (lambda: with_axis(made(BitWidths, grid="kmeans")), "grid of BitWidths must be a grid"),
    "a name as loss": (lambda: with_recovery(made(Imitations, loss="mse")), "loss of Imitations must be a function"),
}  # fmt: skip


def made(kind: Any, *values: Any, **settings: Any) -> Any:
    """Return an object, whatever its types say."""
    return kind(*values, **settings)


def replaced(**changes: Any) -> StudySpec:
    return dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize("case", OBJECTS)
def test_an_object_of_another_kind_is_refused_in_one_line(case: str) -> None:
    make, message = OBJECTS[case]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make()
    assert "but got" in str(error.value)
    assert "\n" not in str(error.value)


def failing(*_: object, **__: object) -> Any:
    raise RuntimeError("two\nlines")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(optimizer=failing), "the optimizer of the recipe must work on this network and its data, but failed"),
        (Recipe(augment=failing), "the augmentation of the recipe must work on this network and its data, but failed"),
        (Recipe(augment=lambda inputs, _: inputs[:, :, 1:]), "the augmentation must return inputs like those it gets"),
    ],
)
def test_functions_of_the_recipe_are_tried_before_anything_is_trained(recipe: Recipe, message: str) -> None:
    with pytest.raises(UserError, match=message):
        context(dataclasses.replace(SMALL, recipe=recipe, limits=()))


def test_whole_numbers_are_taken_where_numbers_are_asked_for() -> None:
    recipe = Recipe(epochs=2, learning_rate=1, weight_decay=0)
    assert Limit(Parameters(), lose_at_most=0).lose_at_most == 0
    assert dataclasses.replace(SMALL, recipe=recipe).recipe == recipe


@dataclasses.dataclass(frozen=True)
class Own:
    """An objective of a user, whose settings are the user's own affair."""

    highest: float = 1.0
    name: str = "own"
    direction: Direction = "minimize"
    is_cost: bool = True

    def __call__(self, model: nn.Module) -> float:
        return min(self.highest, 1.0)


def test_settings_of_a_class_of_the_users_own_are_not_judged() -> None:
    assert dataclasses.replace(SMALL, reported=(Own(highest=INF),)).reported[0].name == "own"


OPTIONS = {
    "--trials": ("0", "-1", "2.5", "nan", "inf", "x", "", "1e3", "9" * 30, "9" * 5000),
    "--minutes": ("nan", "inf", "-inf", "0", "-5", "1e300", "x", ""),
    "--cpu-seconds": ("nan", "inf", "0", "-5", "1e300", "x"),
    "--seed": ("-1", "nan", "1.5", str(2**32), "x"),
    "--threads": ("0", "-1", "nan", "1000000", "x"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_with_a_number_that_cannot_be_meant_is_refused_in_one_line(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in OPTIONS[option]:
        with pytest.raises(SystemExit) as caught:
            main(["run", STUDY, f"{option}={value}"])
        assert caught.value.code == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert printed.startswith(f"slimfront: argument {option}: must be a")
        assert len(printed) < 300


@pytest.mark.parametrize("value", ["-1", "nan", "1001", "0.5"])
def test_seeds_of_a_confirmation_are_from_0_to_1000(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["confirm", STUDY, f"--seeds={value}"])
    assert "argument --seeds: must be a whole number from 0 to 1,000, but got" in capsys.readouterr().err


VARIANTS = """
import dataclasses, functools, torch
from objectives import Examples
from torch.utils.data import DataLoader, Dataset
from my_study import splits, study, teacher

def settings(share=0.6, epochs=1.0, calibration=64):
    return dataclasses.replace(study(share=share), calibration=calibration)

def damaged(split="train", value="nan", at=7):
    data = splits()
    old = getattr(data, split)
    inputs = old.inputs.clone()
    inputs[at, 0, 2, 3] = float(value)
    return dataclasses.replace(study(), splits=dataclasses.replace(data, **{split: Examples(inputs, old.labels)}))

def weights(name="second.weight", value="nan"):
    import copy
    broken = copy.deepcopy(teacher())
    with torch.no_grad():
        broken.state_dict()[name].view(-1)[0] = float(value)
    return dataclasses.replace(study(), teacher=broken)
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(small_study.__file__, tmp_path / "my_study.py")
    (tmp_path / "variants.py").write_text(VARIANTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


STUDIES = {
    "a setting that is NaN": (["settings", "share=nan"], "share must be a finite number, but got 'nan'"),
    "a setting that is infinite": (["settings", "share=-inf"], "share must be a finite number, but got '-inf'"),
    "a negative calibration": (["settings", "calibration=-1"], "calibration must be from 1 to 1,000,000,000"),
    "a share of nothing": (["settings", "share=0"], "at_most of a limit must be positive, but got 0.0 for 'macs'"),
    "NaN in training": (["damaged"], "1 of 192 training inputs contain nan or infinity, the first at index 7; repair"),
    "infinity in training": (["damaged", "value=inf"], "1 of 192 training inputs contain nan or infinity"),
    "NaN in validation": (["damaged", "split=validation"], "1 of 100 validation inputs contain nan or infinity, the f"),
    "NaN in test": (["damaged", "split=test"], "1 of 100 test inputs contain nan or infinity, the first at index 7"),
    "a weight that is NaN": (["weights"], "1 of 576 numbers in 'second.weight' are nan or infinity; load the weig"),
    "a weight that is infinite": (["weights", "value=inf"], "1 of 576 numbers in 'second.weight' are nan or infin"),
    "a statistic that is NaN": (["weights", "name=first_norm.running_var"], "of 8 numbers in 'first_norm.running_var'"),
    "a bias that is NaN": (["weights", "name=head.bias"], "1 of 4 numbers in 'head.bias' are nan or infinity"),
}  # fmt: skip


@pytest.mark.parametrize("case", STUDIES)
def test_a_study_with_numbers_that_are_not_finite_does_not_start(
    workdir: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (function, *settings), message = STUDIES[case]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", f"variants.py:{function}", *words]) == 2
    printed = capsys.readouterr().err
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed
    assert not list(workdir.glob("runs/*/candidates"))


class Logarithms(nn.Module):
    """A network whose weights and inputs are finite, and whose answers are not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, images: Tensor) -> Tensor:
        return torch.log(self.head(images.flatten(1)) - 9)


def test_answers_of_the_teacher_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match=r"answers must be finite, but \d+ of \d+ numbers of its answers"):
        context(dataclasses.replace(SMALL, teacher=Logarithms().eval(), limits=(), objectives=(Parameters(),)))


class Masked(nn.Module):
    """A network with a mask of minus infinity in a buffer, as attention has."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 4)
        self.mask: Tensor
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -INF, 0.0]))

    def forward(self, images: Tensor) -> Tensor:
        return torch.add(self.head(images.flatten(1)), self.mask.clamp_min(-1e4))


def test_a_mask_of_infinities_is_no_fault() -> None:
    assert context(dataclasses.replace(SMALL, teacher=Masked().eval(), limits=())).classes == 4


def masked_error(outputs: Tensor, labels: Tensor) -> Tensor:
    known = labels.isfinite()
    return F.mse_loss(outputs[known], labels[known])


def numbers(recovery: Imitations) -> StudySpec:
    """Return a study of numbers, some of which are not known."""
    data = small_study.splits()
    targets = torch.randn(len(data.train), 4)
    targets[5, 1] = NAN
    splits = dataclasses.replace(
        data,
        train=Examples(data.train.inputs, targets),
        validation=Examples(data.validation.inputs, torch.randn(100, 4)),
        test=Examples(data.test.inputs, torch.randn(100, 4)),
    )
    space = Space(steps=(PruneRatios(),), recovery=recovery)
    return dataclasses.replace(SMALL, splits=splits, space=space, objectives=(Parameters(),), limits=())


def test_targets_that_are_nan_are_refused_with_the_index() -> None:
    for recovery in (Imitations(), Imitations(loss=F.mse_loss)):
        with pytest.raises(UserError, match="1 of 192 training labels contain nan or infinity, the first at index 5; "):
            context(numbers(recovery))


def test_a_loss_that_masks_missing_targets_is_taken_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert context(numbers(Imitations(loss=masked_error))).classes == 0
    assert "the loss is finite on them, so they count as labels that are missing" in capsys.readouterr().err


class Items(Dataset[tuple[Tensor, int]]):
    """A dataset of which one example is damaged, which a few samples do not show."""

    def __init__(self, bad: int) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3,), INF if index == self.bad else float(index)), index % 2


def test_a_damaged_example_of_a_stream_is_named_where_it_is_read() -> None:
    for source in (Items(437), DataLoader(Items(437), batch_size=64, shuffle=True)):
        data = Examples.of(source)
        with pytest.raises(ValueError, match="all inputs must be finite, but the example at index 437 that the"):
            list(data.batches(100))
        with pytest.raises(ValueError, match="all inputs must be finite, but"):
            list(itertools.islice(data.training_batches(64, torch.Generator()), 20))


def test_a_damaged_example_ends_the_run_and_is_not_charged_to_a_plan() -> None:
    with pytest.raises(ValueError, match="must be finite") as found:
        list(Examples.of(Items(437)).batches())
    with pytest.raises(MachineFault, match="the example at index 437"):
        reason_of(found.value)
