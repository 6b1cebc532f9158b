"""Initial designs that are the best plans of a draft."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from search.evaluation.profiling import measure_promising
from search.proposals.converter import converters_plan
from search.proposals.draft import Draft
from search.proposals.seeds import best_sums, first_by_table, reachable_and_known
from search.proposals.sensitivity_table import measured_table
from search.proposals.table_losses import Allowance
from search.proposals.uniform_start import uniform_designs
from search.study.console import console, track
from search.study.numbers import check_positive, check_settings
from spaces.network.messages import number_of

if TYPE_CHECKING:
    from optuna import Study

    from search.evaluation.context import Context
    from search.study.budget_clock import BudgetClock

    Reachable = dict[tuple[float, ...], dict[str, float]]  # costs of the strongest plan of each set of axes

MIN_SCORED, MAX_SCORED = 100, 1000  # plans in the draft, unless the user gives a number (chosen)
SCORED_PER_TRIAL = 12  # plans in the draft for each trained trial of the budget (chosen)
PROMISING_SHARE = 0.05  # share of the budget's time: the most that measuring promising plans may take (chosen)
DRAFT_SAYS = "the draft: "
MIN_DRAFT_SHARE = 0.1  # share of the budget's time that the draft gets at least (chosen)


@dataclass(frozen=True, slots=True)
class DraftStart:
    """Start with the best plans of a draft, in which plans are searched by their loss before any training.

    First a sensitivity table is measured. Its best sums seed an evolution of plans by their proxy loss: each plan is
    built, its BatchNorm statistics are re-estimated, and its outputs are compared with the teacher's, on as many inputs
    as the time allows. If layers can be left out, some of the leading plans are trained for a few steps, and the losses
    of all plans are predicted from these (`ShortTraining`). The plans are trials of a separate Optuna study,
    `<name>-draft`, whose values are the loss and the costs. For a cost that no formula gives, such as latency, a model
    is fitted first, on networks that are profiled on this machine; the last of these are plans with the best sums of
    the table. If no cost is known before training, the study starts with the plans of `UniformStart`.

    Parameters
    ----------
    plans
        Number of plans to train first: what a runtime's own converter makes, 8 bits everywhere, and others that are
        spread over the costs.
    scored
        Number of plans in the draft; by default 12 for each trial of the budget, from 100 to 1000.
    share
        Share of the budget's time by which the draft must be done; if the measurements before it took longer, the
        draft still gets a tenth of the time. The table takes at most a tenth of the budget, and so does measuring
        networks before it; measuring promising plans after it takes at most a twentieth.
    further
        Whether, after the first plans, the others on the draft's front are trained too, before the sampler proposes any
        (`fill_widest_gap`); by default, unless the study names a sampler.
    """

    plans: int = 8
    scored: int | None = None
    share: float = 0.35
    further: bool | None = field(default=None, metadata={"found": True})

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_settings(self)
        for name in ("plans", "scored"):
            check_positive(name, getattr(self, name))
        check_positive("share", self.share, 1)

    def __call__(self, context: Context, study: Study, clock: BudgetClock) -> list[dict[str, float]]:
        """Return the parameters of each plan, in the order of training."""
        reachable, cost_names = reachable_and_known(context, clock)
        if not cost_names:
            return _without_draft("no objective is known before training", context, reachable)
        table = measured_table(context, study, clock)
        seconds = clock.allowed(PROMISING_SHARE)
        measure_promising(study, context, lambda count: best_sums(context, table, cost_names, count), seconds)
        target = self.scored or self._target(clock)
        first = converters_plan(context, cost_names, table)[: self.plans]
        others = self.plans - len(first)
        until = max(self.share, clock.spent + MIN_DRAFT_SHARE)
        allowance = Allowance.of(context, clock, until - clock.spent)
        scored_at_least = min(target, MIN_SCORED) if clock.timed else target
        draft = Draft(context, table, study, cost_names, allowance, scored_at_least)
        with track("scoring plans by their proxy loss") as progress:
            while len(draft) < target and clock.spent < until and draft.step(target):
                progress(max(len(draft) / target, clock.spent / until))
        if len(draft) < self.plans and clock.spent >= until:  # too few to choose from
            words = (
                f"there was time to score {number_of(len(draft), 'plan')}; the initial designs are the best by "
                "the sensitivity table"
            )
            best = first_by_table(context, table, cost_names, draft.seeds, others)
        else:
            words, best = draft.words(), draft.best(others)
        draft.failed.ensure_some_work(len(draft) - draft.failed.reasons.total())
        if not first + best:
            return _without_draft("no plan of the sensitivity table meets the limits", context, reachable)
        console.print(DRAFT_SAYS + words)
        known = {context.plan(params).steps for params in first}
        return first + [params for params in best if context.plan(params).steps not in known]

    def _target(self, clock: BudgetClock) -> int:
        """Return the number of plans that the draft is to reach."""
        trials = clock.budget.trials
        return MAX_SCORED if trials is None else min(MAX_SCORED, max(MIN_SCORED, SCORED_PER_TRIAL * trials))


def _without_draft(reason: str, context: Context, reachable: Reachable) -> list[dict[str, float]]:
    """Report that there is no draft, and return uniform plans instead."""
    console.print(f"no draft, because {reason}; the initial designs compress all layers equally")
    return uniform_designs(context, reachable)
