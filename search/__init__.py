"""The search: specify a study, run it, confirm and export its front. These are the names for a study file."""

import sys
from itertools import pairwise

if not sys.flags.safe_path and ("-m", __name__) in pairwise(sys.orig_argv) and [*__path__] != [f"{sys.path[0]}/search"]:
    # `python -m search` puts the current folder first, where a file may have the name of a library that we use
    sys.path.append(sys.path.pop(0))

import lazy_loader

# The names are in __init__.pyi; each is imported when it is first used, so that a command starts fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
