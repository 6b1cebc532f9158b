"""The page of a report: one HTML file with linked views of a study, which needs no network."""
