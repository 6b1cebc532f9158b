"""The definition and the storage of a study: its specification, its folder, its trials in Optuna's storage."""
