"""The default sampler and the default start of a study."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from search.proposals.draft_sampler import DraftSampler
from search.proposals.draft_start import DraftStart

if TYPE_CHECKING:
    from search.study.spec import StudySpec


def resolved(spec: StudySpec) -> StudySpec:
    """Return the study with `DraftSampler` if it names no sampler and with `DraftStart()` if it names no start.

    Call this once, before the definition of a study is stored or compared.
    """
    return dataclasses.replace(spec, sampler=spec.sampler or DraftSampler, start=spec.start or DraftStart())
