"""Durations in words."""

SHARE_BEFORE_TIME = 0.05  # of an activity, after which the time that is left is shown (chosen)
MINUTE = 60  # seconds
HOUR = 3600  # seconds


def duration(seconds: float) -> str:
    """Format a duration: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02d} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE:02d} min"
