"""Costs of plans without building them: exact costs from shapes, latency from a model fitted on measurements."""
