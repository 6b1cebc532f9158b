"""The definition of a study: which settings it contains, and how a change is reported."""

from __future__ import annotations

import copy
import dataclasses
import functools
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch

from objectives import Limit, Macs, SizeBytes
from objectives.runtimes import OnnxRuntime
from search import Budget, Recipe, StudySpec
from search.proposals.defaults import resolved
from search.study.definition import define, define_value, differences, fingerprint
from search.study.errors import UserError
from search.study.files import folder_of
from search.study.storage import open_study
from spaces import BitWidths, KMeans, PruneRatios, Ranks, Space, SpatialSvd, Taylor, Temperatures
from tests.small_study import Net, examples, searched, splits, study, teacher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Generator, Tensor


def mirrored(images: Tensor, generator: Generator) -> Tensor:
    return images.flip(3)


def space(**axes: Any) -> Space:
    """Return the space of the small study with some axes replaced."""
    usual = {"prune": PruneRatios(), "ranks": Ranks(), "bits": BitWidths(weights=(2, 4, 8), activations=(8,))}
    return Space(steps=tuple({**usual, **axes}.values()), recovery=Temperatures())


# By reported difference: the change of the small study.
CHANGES: dict[str, dict[str, Any]] = {
    "seed was 0, is 1": {"seed": 1},
    "calibration was 64, is 32": {"calibration": 32},
    "recipe.learning_rate was 0.005, is 0.1": {"recipe": Recipe(1, 32, 0.1)},
    "recipe.augment was None, is mirrored": {"recipe": Recipe(1, 32, 5e-3, augment=mirrored)},
    "limits[0] was Limit, is absent": {"limits": ()},
    "limits[0].at_most was 8371.199999999999, is 9.0": {
        "limits": (Limit(Macs(splits().validation.inputs), at_most=9.0),)
    },
    "objectives[0] was Top1, is SizeBytes": {"objectives": (SizeBytes(),)},
    "space.steps[0].highest was 0.75, is 0.5": {"space": space(prune=PruneRatios(highest=0.5))},
    "space.steps[0].importance was SecondOrder, is Taylor": {"space": space(prune=PruneRatios(importance=Taylor()))},
    "space.steps[1].decomposition was Tucker2, is SpatialSvd": {
        "space": space(ranks=Ranks(decomposition=SpatialSvd()))
    },
    "space.steps[2].only was (), is ('head',)": {"space": space(bits=BitWidths((2, 4, 8), (8,), only=("head",)))},
    "space.steps[2].grid was Uniform, is KMeans": {"space": space(bits=BitWidths((2, 4, 8), (8,), KMeans()))},
}


@pytest.mark.parametrize("words", CHANGES)
def test_a_change_is_reported(words: str) -> None:
    before = resolved(study())
    assert words in differences(define(before), define(dataclasses.replace(before, **CHANGES[words])))


def test_other_data_is_reported() -> None:
    other = dataclasses.replace(study(), splits=dataclasses.replace(splits(), train=examples(192, 7)))
    assert [words.split(" was ")[0] for words in differences(define(study()), define(other))] == ["splits.train"]


def test_another_teacher_is_reported() -> None:
    other = copy.deepcopy(teacher())
    next(other.parameters()).data[0] += 1e-6
    assert fingerprint(other) != fingerprint(teacher())
    reported = differences(define(study()), define(dataclasses.replace(study(), teacher=other)))
    assert [words.split(" was ")[0] for words in reported] == ["teacher"]


@pytest.mark.parametrize(
    "after", [{"budget": Budget(99)}, {"confirmation": Recipe(9)}, {"runtime": OnnxRuntime(threads=2)}]
)
def test_settings_without_effect_on_a_trial_are_not_compared(after: dict[str, Any]) -> None:
    assert define(dataclasses.replace(study(), **after)) == define(study())


def test_the_test_split_is_not_compared() -> None:
    other = dataclasses.replace(study(), splits=dataclasses.replace(splits(), test=examples(10, 7)))
    assert define(other) == define(study())


def test_the_definition_is_the_same_in_another_process() -> None:
    code = "from tests.test_definition import define, study; print(sorted(define(study()).items()))"
    command = [sys.executable, "-W", "ignore", "-c", f"import torch; torch.set_num_threads(1); {code}"]
    elsewhere = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert elsewhere == repr(sorted(define(study()).items()))
    assert "0x" not in elsewhere


def test_a_partial_is_defined_by_its_arguments() -> None:
    make = functools.partial(optuna.samplers.TPESampler, n_startup_trials=4)
    other = functools.partial(optuna.samplers.TPESampler, n_startup_trials=5)
    assert define_value(make) != define_value(other)
    assert define_value(make) == define_value(functools.partial(optuna.samplers.TPESampler, n_startup_trials=4))


def test_a_tensor_is_defined_by_its_content() -> None:
    assert define_value(torch.arange(3)) == define_value(torch.arange(3))
    assert define_value(torch.arange(3)) != define_value(torch.arange(3).flip(0))


def test_a_stored_study_with_another_definition_is_not_opened(tmp_path: Path) -> None:
    searched(study(1), tmp_path)
    before = (tmp_path / "journal.log").read_bytes()
    changed = dataclasses.replace(study(1), seed=3)
    message = (
        "the study 'small' was stored with another definition: seed was 0, is 3; undo the change, or give the new "
        "study another name or --folder"
    )
    with pytest.raises(UserError, match=message):
        open_study(resolved(changed), tmp_path, None, create=True)
    assert (tmp_path / "journal.log").read_bytes() == before


def test_an_error_quotes_only_three_changes(tmp_path: Path) -> None:
    searched(study(1), tmp_path)
    changed = dataclasses.replace(study(1), seed=3, calibration=9, limits=(), recipe=Recipe(7, 7, 7))
    with pytest.raises(UserError, match=r"recipe.epochs was 1, is 7|and \d+ more; undo"):
        open_study(resolved(changed), tmp_path, None, create=True)


def test_a_study_does_not_mix_with_the_files_of_another(tmp_path: Path) -> None:
    searched(study(1), tmp_path)
    weights = (tmp_path / "candidates" / "0.safetensors").read_bytes()
    other = dataclasses.replace(study(1), name="other")
    with pytest.raises(UserError, match="holds the candidates of another study; name another folder with --folder"):
        open_study(resolved(other), tmp_path, None, create=True)
    assert (tmp_path / "candidates" / "0.safetensors").read_bytes() == weights


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b"])
def test_a_name_that_cannot_be_a_folder_is_an_error(name: str) -> None:
    message = (
        r"a study's name must start with a letter or digit and consist of letters, digits, '.', '_' and '-', but got"
    )
    with pytest.raises(UserError, match=message):
        folder_of(dataclasses.replace(study(), name=name), None)


def test_an_objective_that_is_also_limited_is_measured_once() -> None:
    macs = Macs(splits().validation.inputs)
    spec = dataclasses.replace(study(), objectives=(macs, SizeBytes()), limits=(Limit(macs, at_most=9.0),))
    assert [objective.name for objective in spec.measured] == ["macs", "size_bytes"]
    assert spec.costs == spec.measured


def test_the_calibration_inputs_are_a_seeded_sample_of_the_training_set() -> None:
    first, again, other = study(), study(), dataclasses.replace(study(), seed=1)
    assert first.example().shape == (64, 1, 8, 8)
    assert first.example().equal(again.example())
    assert not first.example().equal(other.example())


def test_the_structure_is_part_of_a_fingerprint() -> None:
    shaped: Callable[[], Net] = Net
    torch.manual_seed(0)
    one = shaped()
    torch.manual_seed(0)
    two = shaped()
    assert fingerprint(one) == fingerprint(two)
    two.first.stride = (2, 2)
    assert fingerprint(one) != fingerprint(two)


def test_a_spec_is_frozen() -> None:
    assert isinstance(study(), StudySpec)
    with pytest.raises(dataclasses.FrozenInstanceError):
        study().seed = 3  # type: ignore[misc]
