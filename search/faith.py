"""How far the one-shot loss of the draft tells what training will give, on the study's own trials."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from optuna.trial import TrialState
from scipy.stats import spearmanr

from search.draft import choices_in, draft_of
from search.front import trained
from search.trial import ABOUT, VALUES

if TYPE_CHECKING:
    from optuna import Study

    from search.spec import StudySpec

POORLY = "; that is poor, so trainings are stopped at a quarter where they do not promise to beat others"
ENOUGH, POOR = 12, 0.3  # trials from which on, and correlation below which, the draft is not trusted
BAND = 4  # trials of about one cost, among which ranks are compared


class Faith(NamedTuple):
    """The mean rank correlation within bands of cost, and over how many trials; 1 is a draft that is always right."""

    correlation: float
    trials: int

    @property
    def poor(self) -> bool:
        """Whether it is known to tell little, so that only training can."""
        return self.trials >= ENOUGH and self.correlation < POOR


class Told(NamedTuple):
    """How far a cost that the draft told is from what was measured: median relative error, rank correlation."""

    error: float
    correlation: float
    trials: int


def faith(study: Study, spec: StudySpec) -> Faith | None:
    """Return it, or None where too few trials of the draft were trained.

    Over all costs the correlation would say only that larger networks are better. Trials are sorted by their first cost
    into bands of at least four, and Spearman's correlation of the loss with the first trained objective is taken in
    each; what is maximized counts the other way round.
    """
    learned = [at for at, objective in enumerate(spec.objectives) if not objective.is_cost]
    costs = [at for at, objective in enumerate(spec.objectives) if objective.is_cost]
    if not learned or not costs:
        return None
    sign = -1 if spec.objectives[learned[0]].direction == "maximize" else 1
    points = [(values[costs[0]], told[0], sign * values[learned[0]]) for told, values in _told_and_given(study)]
    bands = np.array_split(np.array(sorted(points)), len(points) // BAND) if len(points) >= BAND else []
    found = [float(spearmanr(band[:, 1], band[:, 2])[0]) for band in bands if np.ptp(band, axis=0)[1:].all()]
    return Faith(float(np.mean(found)), len(points)) if found else None


def _told_and_given(study: Study) -> list[tuple[list[float], list[float]]]:
    """Return, of every trained trial whose plan is in the draft, the values there and those that it was given."""
    draft = draft_of(study)
    drafted = draft.get_trials(deepcopy=False) if draft is not None else []
    names = list(drafted[0].params) if drafted else []
    told = {choices_in(trial, names): trial.values for trial in drafted}
    both = ((told.get(choices_in(trial, names)), trial.values) for trial in trained(study))
    return [(of_draft, given) for of_draft, given in both if of_draft is not None]


def misleading(study: Study, spec: StudySpec) -> bool:
    """Whether the draft's scores are known to tell little of what training gives, so that only training can."""
    found = faith(study, spec)
    return found is not None and found.poor


def faith_words(found: Faith | None) -> str:
    """Say it in a line, or that it is not known."""
    if found is None:
        return "too few plans of the draft are trained to tell how far its scores can be trusted"
    return (
        f"the draft's scores and what training gave: rank correlation {found.correlation:.2f} among {found.trials} "
        f"trials of about one cost each{POORLY if found.poor else ''}"
    )


def how_faithful(study: Study, spec: StudySpec) -> str:
    """Say it of a study, and how well learned costs were told; nothing where it has no draft."""
    if draft_of(study) is None:
        return ""
    lines = [
        f"{name} was told with a median error of {found.error:.1%}, rank correlation {found.correlation:.2f}, over "
        f"{found.trials} trials that were measured"
        for name, found in learned_costs(study).items()
    ]
    return "\n".join([faith_words(faith(study, spec)), *lines])


def learned_costs(study: Study) -> dict[str, Told]:
    """Compare every cost that was learned with its measured values, also of trials that a limit refused."""
    over = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    both = [trial.user_attrs for trial in over if {ABOUT, VALUES} <= trial.user_attrs.keys()]
    found = {}
    for name in dict.fromkeys(name for attrs in both for name in attrs[ABOUT]):
        pairs = [(attrs[ABOUT][name], attrs[VALUES][name]) for attrs in both if name in attrs[VALUES]]
        if len(pairs) >= BAND:
            told, measured = np.array(pairs).T
            error = float(np.median(np.abs(told / measured - 1)))
            found[name] = Told(error, float(spearmanr(told, measured)[0]), len(pairs))
    return found
