"""A sampler that is created for every trial draws the same as in a study without interruption."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from search.study.records import REASON
from search.study.seeded_sampler import SeededSampler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": functools.partial(optuna.samplers.TPESampler, n_startup_trials=3),
    "nsga2": functools.partial(optuna.samplers.NSGAIISampler, population_size=4),
    "random": optuna.samplers.RandomSampler,
}
TRIALS = 10


def opened(path: Path, sampler: str, seed: int = 0) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(
        storage=storage, study_name="s", sampler=SeededSampler(SAMPLERS[sampler], seed), load_if_exists=True,
        directions=["minimize", "minimize"],
    )  # fmt: skip


def measure(trial: Trial) -> tuple[float, float]:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_int("y", 1, 32, log=True)
    return x * y, (x - 1) ** 2


def draws(study: optuna.Study) -> list[dict[str, Any]]:
    """Return the parameters of all trials except interrupted ones."""
    return [trial.params for trial in study.trials if trial.state == TrialState.COMPLETE or REASON in trial.user_attrs]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_study_draws_as_if_it_had_not_stopped(tmp_path: Path, sampler: str) -> None:
    once = opened(tmp_path / "once", sampler)
    once.optimize(measure, TRIALS)
    for _ in range(TRIALS // 2):
        opened(tmp_path / "pieces", sampler).optimize(measure, 2)
    assert draws(opened(tmp_path / "pieces", sampler)) == draws(once)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_draw_different_parameters(tmp_path: Path, sampler: str) -> None:
    study = opened(tmp_path / "log", sampler)
    study.optimize(measure, TRIALS)
    assert len({params["x"] for params in draws(study)}) > TRIALS / 2
    assert len({params["x"] for params in draws(study)[:3]}) == 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeds_draw_different_parameters(tmp_path: Path, sampler: str) -> None:
    studies = [opened(tmp_path / str(seed), sampler, seed) for seed in (0, 1)]
    for study in studies:
        study.optimize(measure, 2)
    assert draws(studies[0]) != draws(studies[1])


def test_an_interrupted_trial_that_is_run_again_does_not_change_the_draws(tmp_path: Path) -> None:
    once, twice = opened(tmp_path / "once", "tpe"), opened(tmp_path / "twice", "tpe")
    once.optimize(measure, TRIALS)

    def interrupted(trial: Trial) -> tuple[float, float]:
        measure(trial)
        if trial.number == 5:
            raise KeyboardInterrupt
        return measure(trial)

    with pytest.raises(KeyboardInterrupt):
        twice.optimize(interrupted, TRIALS)
    twice.enqueue_trial(twice.trials[-1].params)
    twice.optimize(measure, TRIALS - 5)
    assert draws(twice) == draws(once)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_trial_after_a_failed_one_draws_different_parameters(tmp_path: Path, sampler: str) -> None:
    def failing(trial: Trial) -> tuple[float, float]:
        values = measure(trial)
        if trial.number in {4, 5}:
            trial.set_user_attr(REASON, "the loss became nan")
            raise ArithmeticError
        return values

    study = opened(tmp_path / "log", sampler)
    study.optimize(failing, 7, catch=(ArithmeticError,))
    assert len({tuple(params.items()) for params in draws(study)[4:]}) == 3


def test_two_workers_draw_different_parameters(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "log", "tpe"), opened(tmp_path / "log", "tpe")
    drawn = [worker.ask().suggest_float("x", 0, 1) for worker in (first, second, first, second)]
    assert len(set(drawn)) == 4
