"""Engines start the workers of a run, on this machine or on others, and one crew watches them."""
