"""Run a study: trial after trial until its budget is spent."""
