"""slimfront in Python and in notebooks: all names of a study, `run`, and the result of a run.

The packages `search`, `objectives` and `spaces` are imported here as they were installed together with this one. A file
of the user's with such a name, in the current folder or beside a notebook, does not take their place.
"""

import importlib
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lazy_loader  # noqa: F401 - the packages use it; it is not to be looked for in the folder that comes first below

if not sys.flags.safe_path and ("-m", __name__) in pairwise(sys.orig_argv):
    # `python -m slimfront` puts the current folder first, where a file may have the name of a library that we use
    sys.path.append(sys.path.pop(0))

_folder = Path(__file__).resolve().parent
# in an installed wheel the packages are beside this one; in a checkout this one is in `search`
_root = _folder.parents[1] if _folder.parent.name == "search" else _folder.parent
_packages = "search", "objectives", "spaces"

for _name in _packages:
    _other = sys.modules.get(_name)
    _init = getattr(_other, "__file__", None) or next(iter(getattr(_other, "__path__", [])), "")
    if _other is not None and Path(_init).resolve() != _root / _name / "__init__.py":
        raise ImportError(
            f"slimfront needs the name {_name!r} for a package of its own, but {_init} was imported under it before: "
            "rename that file, and start Python or the notebook's kernel again"
        )
sys.path.insert(0, str(_root))
try:
    _loaded = [importlib.import_module(name) for name in (*_packages, "objectives.runtimes")]
finally:
    sys.path.remove(str(_root))

warnings.filterwarnings("ignore", "IProgress not found")  # tqdm, which Optuna imports, would show it in notebooks

# Where the names of __init__.pyi are; each is imported when it is first used.
_places = {name: package.__name__ for package in _loaded for name in package.__all__}
_places |= {"Result": f"{__name__}.result", "rebuild": "search.export"}
_places |= dict.fromkeys(("LimitsUnmet", "UserError"), "search.study.errors")
_places |= dict.fromkeys(("load_study", "run"), f"{__name__}.running")
_places |= dict.fromkeys(("Inspection", "inspect"), f"{__name__}.inspecting")
__all__ = sorted(_places)  # noqa: PLE0605 - of the names of all packages


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name
    """Import a public name.

    Raises
    ------
    AttributeError
        If there is none.
    """
    if name not in _places:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_places[name]), name)
    return found


def __dir__() -> list[str]:
    return [*__all__]
