"""What a study leaves open: the default sampler, the default start, and the limits of its goal."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from search.proposals.draft_start import DraftStart
from search.proposals.joint_tpe import JointTPE
from search.study.goal import with_goal

if TYPE_CHECKING:
    from search.study.spec import StudySpec


def resolved(spec: StudySpec) -> StudySpec:
    """Return the study with `JointTPE` and `DraftStart()` where it names none, and with the limits of its goal.

    If it names a sampler, this proposes all plans after the initial designs. Call this once, before the definition of a
    study is stored or compared.
    """
    spec = with_goal(spec)
    start = spec.start or DraftStart()
    if isinstance(start, DraftStart) and start.further is None:
        start = dataclasses.replace(start, further=spec.sampler is None)
    return dataclasses.replace(spec, sampler=spec.sampler or JointTPE, start=start)
