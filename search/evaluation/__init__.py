"""Evaluate one plan: predict its costs, reject it or build, train and measure its network."""
