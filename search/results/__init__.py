"""What comes out of a study: tables, plots, confirmed trainings, verified files."""
