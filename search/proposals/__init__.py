"""Propose plans: initial designs, the sensitivity table, the Lagrangian search, the draft and the samplers."""
