"""Notes that optuna-dashboard shows with a study and with its trials: what they are, in Markdown.

They are written as the dashboard's `save_note` writes them, into system attributes of the study, so nothing needs the
dashboard to be installed; `tests/test_optuna_natives.py` reads them with the dashboard.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from objectives.objective import in_digits
from search.study.records import DRAFT, PLAN, REASON, WORKERS
from search.study.trial_words import ending
from search.study.unmet import known_limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from optuna.trial import FrozenTrial

    from search.study.outline import Outline

NOTE_PART = 2045  # characters of one attribute: what the dashboard writes, and databases take
# Trials with a note, at most (chosen): for each of them the dashboard looks through the notes of all, whenever it is
# asked; on a shared core 500 notes took it 0.2 CPU seconds, 2000 notes 3.3
MOST_NOTED = 500
INTRODUCTION = (
    "slimfront searches for small networks. A trial is one plan: what is done to each layer of a trained network, the "
    "teacher. The result is the feasible Pareto front, `study.best_trials`."
)
VERSION, TEXT = "note_ver", "note_str"  # in the names of the attributes
COMMANDS_SHOWN = {
    "run {}": "search further",
    "front {}": "print the front",
    "report {}": "pictures and an interactive page",
    "confirm {}": "train the front for longer, measure it on the test split",
    "export {} --pick knee": "write the verified file of one member",
}


def name_with_unit(name: str) -> str:
    """Return the name of an objective with its unit, as a study's metric; all but top-k have it in their name.

    Examples
    --------
    >>> name_with_unit("top1"), name_with_unit("size_bytes")
    ('top1_percent', 'size_bytes')
    """
    return f"{name}_percent" if re.fullmatch(r"top\d+", name) else name


def note_study(study: Study, text: str) -> None:
    """Write the note of a study unless it has one, which somebody may have changed."""
    storage, study_id = study._storage, study._study_id  # noqa: SLF001 - as the dashboard does
    if f"dashboard:{VERSION}" not in storage.get_study_system_attrs(study_id):
        _write(study, "dashboard:", text)


def note_trial(study: Study, trial: FrozenTrial) -> None:
    """Write the note of a finished trial: its end, the reason and the plan, in words."""
    if trial.number < MOST_NOTED:
        words = [f"**{ending(trial)}**", trial.user_attrs.get(REASON, ""), trial.user_attrs.get(PLAN, "")]
        _write(study, f"dashboard:{trial._trial_id}:", "\n\n".join(filter(None, words)))  # noqa: SLF001 - the same


def study_text(study: Study, spec: Outline, teacher: Mapping[str, float], words: str) -> str:
    """Describe a study: what a trial is, objectives, limits, goal, the teacher's values, the commands that go on.

    Parameters
    ----------
    study, spec
        The study.
    teacher
        The teacher's value of every measured objective.
    words
        What follows a command of slimfront to name the study.
    """
    directions = {objective.name: f"{objective.direction}d" for objective in spec.objectives}
    values = [
        f"| {name_with_unit(name)} | {directions.get(name, 'measured')} | {in_digits(value)} |"
        for name, value in teacher.items()
    ]
    limits = [f"- `constraints[{at}]`: {limit.words}" for at, limit in enumerate(known_limits(study, spec))]
    commands = [f"slimfront {command.format(words)}  # {what}" for command, what in COMMANDS_SHOWN.items()]
    return "\n".join(
        [
            f"# {spec.name}",
            "",
            INTRODUCTION,
            "",
            *([f"Goal: {spec.goal}", ""] if spec.goal else []),
            *("| objective | | teacher |", "|---|---|---|", *values, ""),
            *(["A trial is feasible if each number of its `constraints` is 0 or less:", *limits] if limits else []),
            *([] if limits else ["The study has no limits."]),
            *("", f"`{spec.name}{DRAFT}` and `{spec.name}{WORKERS}` are not the result: see their notes.", ""),
            *("```", *commands, "```"),
        ]
    )


def draft_text(name: str) -> str:
    """Describe the draft of the study with this name."""
    return (
        f"# The draft of `{name}`: not the result\n\nIts trials are plans that were scored before the search, and not "
        "trained, or only for a moment. The score, `one_shot_loss`, is how far the answers of the compressed network "
        "are from the teacher's: 0 for the teacher, 1 for a network with one mean answer to everything. "
        f"`{name}` trains the most promising plans; look there for networks."
    )


def workers_text(name: str) -> str:
    """Describe the study in which the workers of a study write what they do."""
    return (
        f"# The workers of `{name}`: not the result\n\nA trial is a ticket, with which a worker keeps others from the "
        f"same task; a ticket that was given back is a failed trial. Look in `{name}` for networks."
    )


def _write(study: Study, prefix: str, text: str) -> None:
    """Write a note; its version, without which it is not shown, comes last."""
    storage, study_id = study._storage, study._study_id  # noqa: SLF001 - the same
    for part in range(0, len(text), NOTE_PART):
        storage.set_study_system_attr(study_id, f"{prefix}{TEXT}:{part // NOTE_PART}", text[part : part + NOTE_PART])
    storage.set_study_system_attr(study_id, f"{prefix}{VERSION}", 1)
