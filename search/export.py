"""The way back from an exported folder to a torch network: `from search.export import rebuild`."""

from search.results.export import rebuild

__all__ = ["rebuild"]
