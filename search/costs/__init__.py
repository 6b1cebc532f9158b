"""Costs of plans before anything is built: exact ones from shapes, latency from a model of measurements."""
