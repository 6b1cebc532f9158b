"""Transformations of exported graphs and files that several runtimes share."""
