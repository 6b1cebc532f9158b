"""Run a study, one trial after another, until its budget is spent."""
