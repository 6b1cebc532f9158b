"""What was recorded of trained weights, and whether the network that is made of them is still the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from objectives import Agreement, Metric, Top1, TopK
from search.results.verification import FLOAT_TOLERANCE, LARGEST_TOP1_DIFFERENCE, is_near
from search.study.attributes import numbers_of
from search.study.errors import UserError
from search.study.files import Damaged, load_json
from search.study.records import VALUES, WEIGHTS
from search.study.weights import CONFIRMED, are_available, fetch, restore

if TYPE_CHECKING:
    from pathlib import Path

    from optuna.trial import FrozenTrial
    from torch import nn

    from search.evaluation.context import Context
    from search.study.spec import StudySpec
    from spaces import Plan

FEW_EXAMPLES = 2  # examples whose answer may differ on another machine, however few there are (chosen)


class Recorded(NamedTuple):
    """What was recorded when weights were written.

    Attributes
    ----------
    sha256
        The SHA-256 of their file; None if version 0.1 wrote it.
    values
        The metrics of the network on the validation split, by name.
    """

    sha256: str | None
    values: dict[str, float]


def recorded(trial: FrozenTrial, weights: Path) -> Recorded:
    """Return what the search, or `confirm`, recorded of the weights of a trial.

    Raises
    ------
    UserError
        If the record of a confirmation is damaged.
    """
    if weights.parent.name != CONFIRMED:
        return Recorded(trial.user_attrs.get(WEIGHTS), numbers_of(trial, VALUES))
    path = weights.with_suffix(".json")
    try:
        content = load_json(path, {"values": dict})
        values = {name.removeprefix("validation_"): float(value) for name, value in content["values"].items()}
        return Recorded(content.get(WEIGHTS), values)
    except (OSError, Damaged, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be used: {error}; {_train_anew(trial)}") from error


def restored(trial: FrozenTrial, context: Context, weights: Path) -> tuple[Plan, nn.Module]:
    """Restore a trial: return its plan and its trained network, on the CPU in evaluation mode.

    Raises
    ------
    UserError
        If the file of its weights is missing, or not what was written.
    """
    if not are_available(trial, weights):
        raise UserError(
            f"the weights of trial {trial.number} are missing: {weights}; name the folder of the study with --folder"
        )
    plan = context.plan(trial.params)
    model = context.build(plan)
    try:
        fetch(trial, weights)
        restore(model, weights, recorded(trial, weights).sha256)
    except (OSError, Damaged) as error:
        raise UserError(f"{error}; {_train_anew(trial)}") from error
    return plan, model.cpu().eval()


def ensure_as_recorded(
    trial: FrozenTrial, weights: Path, model: nn.Module, finished: nn.Module, spec: StudySpec
) -> None:
    """Compare the metrics of a restored network on the validation split with those recorded when it was trained.

    On the same machine they are equal. Another machine, number of threads or device sums in another order, so that a
    few answers on the border between two classes may change: half a point of what counts examples, or two examples, is
    allowed, and 1% of any other metric or twice what rounding to 8 bits changes, as for a file and its network.

    Parameters
    ----------
    trial, weights
        The trial and the file of its weights.
    model, finished
        The restored network and its finished form, on which the search measured.
    spec
        The study; its metrics are measured on its validation split.

    Raises
    ------
    UserError
        If they differ by more; also if a value is not a number.
    """
    known, validation = recorded(trial, weights).values, spec.splits.validation
    for metric in (one for one in spec.measured if isinstance(one, Metric) and one.name in known):
        value, before = float(metric.on(validation)(finished)), known[metric.name]
        if isinstance(metric, Top1 | TopK | Agreement):
            allowed = max(LARGEST_TOP1_DIFFERENCE, FEW_EXAMPLES * 100 / len(validation))
            same = abs(value - before) <= allowed + FLOAT_TOLERANCE
        else:
            same = is_near(metric, value, before, model, spec.splits.validation)
        if not same:
            raise UserError(
                f"{metric.name} of the network of trial {trial.number} is {value:.5g}, but {before:.5g} was recorded "
                f"when it was trained, so {weights} or the code of the network was changed; undo the change, or "
                f"{_train_anew(trial)}"
            )


def _train_anew(trial: FrozenTrial) -> str:
    """Return the way out if the weights of a trial cannot be used."""
    return f"train it anew with: slimfront confirm STUDY --pick {trial.number} --seeds 1"
