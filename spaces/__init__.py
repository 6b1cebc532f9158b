"""Spaces and plans: which compressions may be chosen for a network, and the steps that apply them.

A `Space` holds axes in order. For each trial every axis proposes one frozen `Step`; these steps and a `Recovery` make a
`Plan`, which turns the teacher into a smaller network.
"""

import lazy_loader

# The names are in __init__.pyi; each is imported when it is first used, so that a command starts fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
