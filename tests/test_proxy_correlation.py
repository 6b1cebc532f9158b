"""The proxy rank correlation: how well the draft's losses predict trained results."""

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
from search.study.records import DRAFT, EPOCHS, TRAINED_LOSS
from tests.small_study import study

SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}


def trained_study(trials: int, correlation: float, epochs: float = 2.0) -> optuna.Study:
    """Return a study in which, at each cost, smaller losses mean smaller (1) or larger (-1) losses after training."""
    storage = optuna.storages.InMemoryStorage()
    main = optuna.create_study(storage=storage, study_name="s", directions=["maximize", "minimize"])
    draft = optuna.create_study(storage=storage, study_name="s" + DRAFT, directions=["minimize", "minimize"])
    rng = np.random.default_rng(0)
    for at in range(trials):
        x, size = float(rng.random()), 1000.0 * (1 + at // 4)
        draft.add_trial(create_trial(params={"x": x}, distributions=SPACE, values=[x, size]))
        attributes = {TRAINED_LOSS: 0.5 - size / 1e5 + correlation * x, EPOCHS: epochs}
        params, kinds = {"x": x, "other": 0.5}, SPACE | {"other": FloatDistribution(0.0, 1.0)}
        main.add_trial(create_trial(params=params, distributions=kinds, values=[90.0, size], user_attrs=attributes))
    return main


@pytest.mark.parametrize("correlation", [1.0, -1.0])
def test_the_rank_correlation_is_computed_among_trials_of_similar_cost(correlation: float) -> None:
    found = proxy_correlation(trained_study(12, correlation), study())
    assert found is not None
    assert (round(found.correlation, 6), found.trials) == (correlation, 12)


def test_the_correlation_is_unknown_without_a_draft_or_enough_trials() -> None:
    assert proxy_correlation(optuna.create_study(directions=["maximize", "minimize"]), study()) is None
    assert proxy_correlation(trained_study(3, 1.0), study()) is None
    assert proxy_correlation(trained_study(12, 1.0, epochs=0.0), study()) is None, "measured without training"
    assert proxy_correlation_words(None) == (
        "proxy rank correlation: not known yet; it needs more plans of the draft that were trained equally long"
    )


@pytest.mark.parametrize(("correlation", "trials", "poor"), [(1.0, 12, False), (-1.0, 12, True), (-1.0, 8, False)])
def test_a_misleading_draft_is_recognized_after_enough_trials(*, correlation: float, trials: int, poor: bool) -> None:
    main = trained_study(trials, correlation)
    assert is_misleading(main, study()) is poor
    assert ("this is poor" in proxy_correlation_words(proxy_correlation(main, study()))) is poor


def test_the_correlation_is_described_in_one_line() -> None:
    assert proxy_correlation_words(ProxyCorrelation(0.876, 12)) == (
        "proxy rank correlation (untrained loss against trained loss, at similar cost): 0.88 over 12 trials"
    )


def test_only_trials_of_one_length_are_compared() -> None:
    main = trained_study(12, 1.0)
    longer = {TRAINED_LOSS: -5.0, EPOCHS: 8.0}
    first = main.trials[0]
    main.add_trial(
        create_trial(params=first.params, distributions=first.distributions, values=[90.0, 1e3], user_attrs=longer)
    )
    assert proxy_correlation(main, study()) == ProxyCorrelation(1.0, 12)
