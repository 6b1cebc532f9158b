"""Rewrites of exported graphs and files that several formats share."""
