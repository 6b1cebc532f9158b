"""Tests, and the contracts that extensions inherit."""
