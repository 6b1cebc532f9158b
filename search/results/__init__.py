"""The results of a study: tables, plots, confirmed trainings, verified files."""
