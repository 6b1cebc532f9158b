"""Plans that fail: each is one refused plan with its reason, and never the end of a run."""

from __future__ import annotations

from collections import Counter

from search.study.console import console
from search.study.errors import UserError, reason_of
from spaces.network.messages import number_of

FIRST_FAILURES = 3  # plans that fail before any works; then it is not the plans that have an error (chosen)


class FailedPlans:
    """The plans that failed during one activity; each reason is printed once.

    Parameters
    ----------
    activity
        What the plans were needed for, such as `the sensitivity table`.
    """

    def __init__(self, activity: str) -> None:
        self.activity = activity
        self.reasons: Counter[str] = Counter()

    def note(self, words: str, error: Exception) -> str:
        """Record that a plan, given in words, failed, and print why; return the reason.

        Raises
        ------
        MachineFault
            If the machine is to blame.
        """
        reason = reason_of(error)
        if reason not in self.reasons:
            console.print(f"{self.activity}: a plan failed ({words}): {reason}")
        self.reasons[reason] += 1
        return reason

    def words(self) -> str:
        """Say how many plans failed; empty if none did."""
        count = self.reasons.total()
        return f"{self.activity}: {number_of(count, 'plan')} failed and count as the worst" if count else ""

    def ensure_some_work(self, worked: int) -> None:
        """Check that not all plans failed.

        Raises
        ------
        UserError
            If they did; the message shows the most frequent reason.
        """
        if self.reasons and not worked:
            (reason, _), *_ = self.reasons.most_common(1)
            raise UserError(
                f"{self.activity}: all {self.reasons.total()} plans failed, most often with {reason}; `slimfront "
                "inspect` shows what each axis can do with each layer; --debug shows more"
            )
