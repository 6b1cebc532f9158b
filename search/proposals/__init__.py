"""Propose plans: a sensitivity table, a search on it, a draft of untrained plans, samplers."""
