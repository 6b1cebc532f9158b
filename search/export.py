"""Rebuild the torch network of an exported folder: `from search.export import rebuild`."""

from search.results.exported import rebuild

__all__ = ["rebuild"]
