"""Propose plans: initial designs, the sensitivity table, the band search, the draft and the samplers."""
