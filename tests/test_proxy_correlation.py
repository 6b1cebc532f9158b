"""How far the draft is to be trusted."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import create_trial

from search.proposals.proxy_correlation import (
    ProxyCorrelation,
    is_misleading,
    proxy_correlation,
    proxy_correlation_words,
)
from search.study.records import DRAFT
from tests.small_study import study

SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}


def trained_study(trials: int, told: float) -> optuna.Study:
    """Return a study whose accuracies follow the losses within one cost (told = 1), or fall the other way (-1)."""
    storage = optuna.storages.InMemoryStorage()
    main = optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])
    draft = optuna.create_study(storage=storage, study_name="s" + DRAFT, directions=["minimize", "minimize"])
    dice = np.random.default_rng(0)
    for at in range(trials):
        x, size = float(dice.random()), 1000.0 * (1 + at // 4)
        draft.add_trial(create_trial(params={"x": x}, distributions=SPACE, values=[x, size]))
        accuracy = 50 + size / 1000 - told * x
        params, kinds = {"x": x, "other": 0.5}, SPACE | {"other": FloatDistribution(0.0, 1.0)}
        main.add_trial(create_trial(params=params, distributions=kinds, values=[accuracy, size]))
    return main


@pytest.mark.parametrize("told", [1.0, -1.0])
def test_it_is_the_rank_correlation_among_trials_of_one_cost(told: float) -> None:
    found = proxy_correlation(trained_study(12, told), study())
    assert found is not None
    assert (round(found.correlation, 6), found.trials) == (told, 12)


def test_without_a_draft_or_enough_trials_it_is_not_known() -> None:
    assert proxy_correlation(optuna.create_study(directions=["maximize", "minimize"]), study()) is None
    assert proxy_correlation(trained_study(3, 1.0), study()) is None
    assert proxy_correlation_words(None).endswith("too few plans of the draft are trained")


@pytest.mark.parametrize(("told", "trials", "poor"), [(1.0, 12, False), (-1.0, 12, True), (-1.0, 8, False)])
def test_a_draft_that_misleads_is_known_after_enough_trials(*, told: float, trials: int, poor: bool) -> None:
    main = trained_study(trials, told)
    assert is_misleading(main, study()) is poor
    assert ("that is poor" in proxy_correlation_words(proxy_correlation(main, study()))) is poor


def test_it_is_said_in_a_line() -> None:
    assert proxy_correlation_words(ProxyCorrelation(0.876, 12)) == (
        "proxy rank correlation (untrained loss against trained result, at similar cost): 0.88 over 12 trials"
    )
