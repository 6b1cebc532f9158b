"""The sampler: Optuna's TPE at first, and in a long study the same estimators, for all parameters at once."""

from __future__ import annotations

import time

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.proposals import joint_tpe
from search.proposals.joint_tpe import JointTPE
from search.study import seen_trials
from search.study.front import front
from search.study.seeded_sampler import SeededSampler
from search.study.seen_trials import MOST_SEEN, seen_by_sampler

SPACE = {
    "ratio": FloatDistribution(0, 0.75, step=0.125),
    "rank": FloatDistribution(0.125, 1, step=0.125),
    "bits": IntDistribution(2, 32, log=True),
    "input": IntDistribution(4, 32, log=True),
    "heat": FloatDistribution(1, 8, log=True),
}


def finished(count: int, seed: int = 0) -> list[FrozenTrial]:
    """Return trials of which those with few bits are good; some exceed a limit, some were stopped."""
    rng, trials = np.random.default_rng(seed), []
    for number in range(count):
        params = {
            "ratio": rng.integers(7) * 0.125,
            "rank": rng.integers(1, 9) * 0.125,
            "bits": int(rng.integers(2, 33)),
        }
        params |= {"input": int(rng.integers(4, 33)), "heat": float(rng.uniform(1, 8))}
        good = params["bits"] + params["ratio"]
        state = TrialState.PRUNED if number % 9 == 4 else TrialState.COMPLETE
        values = [-good + rng.normal() / 9, good + rng.normal() / 9] if state == TrialState.COMPLETE else None
        limit = {"constraints:l": 1.0 if number % 7 == 3 else -1.0}
        trials.append(
            create_trial(state=state, params=params, distributions=SPACE, system_attrs=limit, values=values)
        )  # fmt: skip
    return trials


def study_of(count: int, sampler: type[TPESampler] = JointTPE, seed: int = 0) -> optuna.Study:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SeededSampler(sampler, seed))
    study.add_trials(finished(count))
    return study


def drawn(study: optuna.Study) -> dict[str, float]:
    trial = study.ask()
    return {name: trial._suggest(name, distribution) for name, distribution in SPACE.items()}


@pytest.mark.parametrize("count", [0, 5, 40, joint_tpe.SHORT])
def test_a_short_study_draws_what_optunas_sampler_draws(count: int) -> None:
    both = [study_of(count, sampler) for sampler in (JointTPE, TPESampler)]
    assert [drawn(both[0]) for _ in range(3)] == [drawn(both[1]) for _ in range(3)]


def test_it_draws_as_optunas_sampler_without_a_wrapper() -> None:
    bare = optuna.create_study(directions=["maximize", "minimize"])
    bare.add_trials(finished(60))
    for number in (60, 61):
        seed = int(np.random.SeedSequence((3, number)).generate_state(1)[0])
        bare.sampler = TPESampler(seed=seed)
        expected = drawn(bare)
        wrapped = study_of(60, seed=3)
        if number == 61:
            drawn(wrapped)
        assert drawn(wrapped) == expected


@pytest.mark.parametrize("name", ["ratio", "rank", "bits", "input"])
@pytest.mark.parametrize("count", [0, 1, 2, 30, 400])
def test_its_estimators_are_those_of_optuna(name: str, count: int) -> None:
    distribution, rng = SPACE[name], np.random.default_rng(count)
    values = joint_tpe._values(distribution)
    observed = rng.choice(values, count)
    weights = np.ones(count)  # with others, which of several equal observations comes first would matter
    parameters = _ParzenEstimatorParameters(1.0, True, False, np.ones, True)  # noqa: FBT003
    theirs = _ParzenEstimator({name: observed}, {name: distribution}, parameters)
    expected = np.exp(theirs.log_pdf({name: values}))
    ours = joint_tpe._masses(np.column_stack([observed, observed[::-1]]), weights, distribution)
    assert ours[0] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert ours.sum(1) == pytest.approx([1, 1])


def test_a_long_study_draws_from_the_whole_space_and_more_where_trials_are_good() -> None:
    study = study_of(700)
    params = [drawn(study) for _ in range(60)]
    for name, distribution in SPACE.items():
        assert all(distribution._contains(distribution.to_internal_repr(each[name])) for each in params)
    assert all(isinstance(each["bits"], int) and isinstance(each["ratio"], float) for each in params)
    assert len({each["rank"] for each in params}) > 2
    bits = np.array([each["bits"] for each in params])
    # the values are good at both ends: few bits are small, many are good in the other objective
    assert np.mean((bits <= 5) | (bits >= 29)) > 1.5 * (4 + 4) / 31


def test_the_same_seed_draws_the_same_and_others_do_not() -> None:
    first, again, other = study_of(500), study_of(500), study_of(500, seed=1)
    expected = [drawn(first) for _ in range(3)]
    assert [drawn(again) for _ in range(3)] == expected
    assert drawn(other) != expected[0]
    assert len({tuple(each.values()) for each in expected}) == 3


def test_a_plan_of_many_parameters_takes_milliseconds_in_a_long_study() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SeededSampler(JointTPE, 0))
    space = {f"{name}{at}": one for at in range(18) for name, one in SPACE.items() if name != "heat"}
    rng = np.random.default_rng(0)
    study.add_trials(
        create_trial(
            params={name: rng.choice(joint_tpe._values(one)).item() for name, one in space.items()},
            distributions=space, values=[rng.random(), rng.random()],
        )
        for _ in range(1000)
    )  # fmt: skip
    times = []
    for _ in range(4):
        started = time.process_time()
        trial = study.ask()
        for name, distribution in space.items():
            trial._suggest(name, distribution)
        times.append(time.process_time() - started)
    assert min(times) < 0.1  # 0.5 s before; a shared core may be slow


def test_a_sampler_of_a_long_study_sees_the_front_the_latest_and_others() -> None:
    study = study_of(1500)
    seen = seen_by_sampler(study, whole=False).get_trials(deepcopy=False)
    numbers = [trial.number for trial in seen]
    assert numbers == sorted(set(numbers))
    assert MOST_SEEN - 20 <= len(seen) <= MOST_SEEN
    assert {trial.number for trial in front(study)} <= set(numbers)
    assert set(range(1500 - seen_trials.OF_LATEST, 1500)) <= set(numbers)
    assert max(np.diff(numbers)) < 50
    assert seen_by_sampler(study, whole=True).get_trials(deepcopy=False) == study.get_trials(deepcopy=False)


def test_a_sampler_sees_all_of_a_short_study_and_other_studies_whole() -> None:
    study = study_of(MOST_SEEN)
    study.ask()
    study.enqueue_trial({"bits": 3})
    seen = seen_by_sampler(study, whole=False)
    assert seen.get_trials(deepcopy=False) == study.get_trials(deepcopy=False)
    assert len(seen.get_trials(states=(TrialState.WAITING,))) == 1
    assert seen.directions == study.directions


def test_a_line_says_once_that_the_sampler_sees_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(MOST_SEEN + 1)
    drawn(study)
    drawn(study)
    output = capsys.readouterr()
    assert (output.out + output.err).count(f"the sampler sees {MOST_SEEN} of the finished trials") == 1


def test_nsga2_goes_on_from_generation_to_generation_in_a_long_study() -> None:
    def make(seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.NSGAIISampler(population_size=10, seed=seed)

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SeededSampler(make, 0))
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)), 450)
    assert study.trials[-1].system_attrs["NSGAIISampler:generation"] == 44
