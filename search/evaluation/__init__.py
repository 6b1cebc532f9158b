"""Evaluate one candidate: build it, predict its loss, reject it early or train it, measure it."""
