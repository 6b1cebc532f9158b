"""The initial design that costs no search: what a runtime's own converter makes of the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search.proposals.limits import excess_over_limits
from spaces.plan import architectures_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from search.evaluation.context import Context
    from search.proposals.sensitivity_table import SensitivityTable


def converters_plan(
    context: Context, cost_names: Iterable[str], table: SensitivityTable | None = None
) -> list[dict[str, float]]:
    """Return the parameters of the plan with 8 bits everywhere; none if it saves nothing, or exceeds a limit.

    It is what people get without a search, so no search should give less, however short it is.

    Parameters
    ----------
    context
        The study.
    cost_names
        Costs that are known before training, one of which the plan must lower.
    table
        The sensitivity table, whose values the plan has where they mean the same, as the plans of a draft do.
    """
    params = context.spec.space.converted(context.subject.anatomy)
    architectures = architectures_of(context.cost_model.frame, [None, context.plan(params)])
    costs = context.cost_model.of(architectures)
    saves = any(costs[name][1] < costs[name][0] for name in cost_names)
    if not saves or excess_over_limits(context, costs)[1] > 0:
        return []
    if table is not None:
        pairs = zip(table.names, table.values, strict=True)
        of_table = {name: min(values, key=lambda value: abs(value - params[name])) for name, values in pairs}
        if context.plan(params | of_table).steps == context.plan(params).steps:
            return [params | of_table]
    return [params]
