"""Plans of the draft in the gaps between those that were trained."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
from optuna.trial import create_trial

from objectives import Limit, Macs, Top1
from search import DraftStart
from search.proposals.defaults import resolved
from search.proposals.draft_records import create_draft, draft_of, tried
from search.proposals.gaps import fill_widest_gap, widest_gap
from search.study.queue import fixed
from search.study.records import LIMIT, STOPPED
from tests.small_study import context, searched, splits, study

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study


STOPPED_EARLY = 9.0  # in place of an excess: early stopping ended the training, since a limit was out of reach
DISTRIBUTION = optuna.distributions.IntDistribution(0, 100)
# the number of a plan, its proxy loss and its cost; 5 is dominated, 6 as good as 0: losses so small mean nothing
PLANS = [
    (6, 0.0, 999.0),
    (0, 0.003, 256.0),
    (1, 0.02, 128.0),
    (2, 0.03, 64.0),
    (3, 0.1, 16.0),
    (4, 0.7, 1.0),
    (5, 0.5, 100.0),
]


def drafted(trained: dict[int, float]) -> Study:
    """Return a study with a draft of `PLANS`, some of which were trained: by how much each exceeds the limit."""
    main = optuna.create_study(study_name="main", storage=optuna.storages.InMemoryStorage())
    draft = create_draft(main, ["loss", "cost"])
    for number, *values in PLANS:
        draft.add_trial(create_trial(params={"x": number}, distributions={"x": DISTRIBUTION}, values=values))
    for number, excess in trained.items():
        main.enqueue_trial({"x": number})
        trial = main.ask({"x": DISTRIBUTION})
        trial.set_constraint("limit", excess)
        if excess == STOPPED_EARLY:
            trial.set_user_attr(STOPPED, LIMIT)
            main.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            main.tell(trial, 0.5)
    return main


def waiting(main: Study) -> list[int]:
    return [fixed(trial)["x"] for trial in main.get_trials(states=(optuna.trial.TrialState.WAITING,))]


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        ({}, []),  # the initial designs come before
        ({0: 0.0}, [3]),  # the farthest, as 4 is closer to the mean answer than to the teacher
        ({0: 0.0, 3: 0.0}, [2]),
        ({0: 0.0, 3: 0.0, 2: 0.0}, [4]),  # the doubtful one is a quarter of the trainings
        ({0: 0.0, 3: 0.0, 4: 0.0}, [2]),  # and no more
        ({0: 0.0, 3: 0.0, 2: 0.0, 1: 0.0}, [4]),  # only the doubtful one is left
        ({0: 0.0, 3: 0.0, 2: 0.0, 1: 0.0, 4: 0.0}, []),  # 5 is dominated
        ({0: 0.0, 2: 0.1}, [1]),  # 2 missed a limit, so 3, whose loss is larger, is expected to
        ({0: 0.0, 2: STOPPED_EARLY}, [1]),
        ({0: 0.1}, [6]),  # all missed: the smallest loss is next, of all plans
        ({0: 0.1, 6: 0.1, 1: 0.1, 2: 0.1, 3: 0.1}, [5]),
        ({2: 0.1, 3: 0.0}, [0]),  # 2 missed it, but 3 did not
    ],
)
def test_the_widest_gap_is_filled_where_limits_can_be_met(
    monkeypatch: pytest.MonkeyPatch, trained: dict[int, float], expected: list[int]
) -> None:
    monkeypatch.setattr("search.proposals.gaps.any_excess", lambda _: False)
    main, shared = drafted(trained), context(study())
    for _ in range(2):
        fill_widest_gap(main, shared)
        assert waiting(main) == expected, "and nothing more, as long as a trial waits"


def test_a_plan_that_another_worker_adds_meanwhile_is_considered_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    main, shared = drafted({0: 0.0}), context(study())
    monkeypatch.setattr("search.proposals.gaps.any_excess", lambda _: False)
    draft = draft_of(main)
    assert draft is not None
    coming = [create_trial(params={"x": 9}, distributions={"x": DISTRIBUTION}, values=[0.2, 4.0])]

    def tried_meanwhile(*arguments: Any) -> Any:
        if coming:
            draft.add_trial(coming.pop())
        return tried(*arguments)

    monkeypatch.setattr("search.proposals.gaps.tried", tried_meanwhile)
    assert widest_gap(main, shared) == {"x": 3}
    assert widest_gap(main, shared) == {"x": 9}


def test_plans_that_the_cost_models_refuse_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    main, shared = drafted({0: 0.0}), context(study())
    monkeypatch.setattr("search.proposals.gaps.any_excess", lambda _: True)
    monkeypatch.setattr(shared, "plan", lambda params: params)
    refused = {3: 0.2, 2: 0.1}  # at every margin
    monkeypatch.setattr(
        "search.proposals.gaps.excess_of",
        lambda _, plans, __: np.array([refused.get(params["x"], 0.0) for params in plans]),
    )
    fill_widest_gap(main, shared)
    assert waiting(main) == [1]
    main = drafted({0: 0.0})
    monkeypatch.setattr("search.proposals.gaps.excess_of", lambda _, plans, margin: np.full(len(plans), margin + 0.5))
    fill_widest_gap(main, shared)
    assert waiting(main) == [3], "allowed by the last margin alone"
    nothing = optuna.create_study(study_name="no draft", storage=optuna.storages.InMemoryStorage())
    fill_widest_gap(nothing, shared)
    assert not nothing.trials


def test_a_named_sampler_proposes_all_plans_after_the_initial_designs(tmp_path: Path) -> None:
    random = optuna.samplers.RandomSampler
    bare = dataclasses.replace(study(), start=None)
    assert resolved(bare).start == DraftStart(further=True)
    assert resolved(dataclasses.replace(bare, sampler=random)).start == DraftStart(further=False)
    limits = (Limit(Top1(splits().validation), at_least=1.0), Limit(Macs(splits().validation.inputs), at_most=1e9))
    for further in (True, False):
        start = DraftStart(plans=3, scored=30, further=further)
        done = searched(
            dataclasses.replace(study(8), start=start, sampler=random, limits=limits), tmp_path / str(further)
        )
        enqueued = [bool(fixed(trial)) for trial in done.trials]
        assert all(enqueued[:6]) == further
        assert any(enqueued[:3])
