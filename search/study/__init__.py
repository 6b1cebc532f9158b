"""A study as it is defined and stored: its specification, its folder, its trials in Optuna's storage."""
