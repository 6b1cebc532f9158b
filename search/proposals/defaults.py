"""What a study leaves open: the default sampler, the default start, and the limits of its goal."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from search.proposals.draft_sampler import DraftSampler
from search.proposals.draft_start import DraftStart
from search.study.goal import with_goal

if TYPE_CHECKING:
    from search.study.spec import StudySpec


def resolved(spec: StudySpec) -> StudySpec:
    """Return the study with `DraftSampler` and `DraftStart()` where it names none, and with the limits of its goal.

    Call this once, before the definition of a study is stored or compared.
    """
    spec = with_goal(spec)
    return dataclasses.replace(spec, sampler=spec.sampler or DraftSampler, start=spec.start or DraftStart())
