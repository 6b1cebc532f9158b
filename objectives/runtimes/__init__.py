"""Runtimes, which store a finished model in a file and execute the file."""

import lazy_loader

# The names are in __init__.pyi; each is imported when it is first used, so that a command starts fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
