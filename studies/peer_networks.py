"""Compress the small networks that other compression tools keep in their own tests, and say where that fails.

    python -m studies.peer_networks FOLDER                  all of them, a row each, then counts per tool
    python -m studies.peer_networks FOLDER nncf Residual    those whose tool, file or expression holds a word
    python -m studies.peer_networks FOLDER --no-export      without the ONNX files, which take longest

FOLDER holds checkouts of the tools; nothing of them is installed. The rows in docs/pages/networks.md are of these
commits:

    git clone https://github.com/VainF/Torch-Pruning            # e80127d
    git clone https://github.com/openvinotoolkit/nncf           # ef8e1db
    git clone https://github.com/quic/aimet                     # c51b284
    git clone https://github.com/sony/model_optimization        # fad922f
    git clone https://github.com/microsoft/nni                  # 767ed7f
    git clone https://github.com/tianyic/only_train_once        # 5d0963d
    git clone https://github.com/Xilinx/brevitas                # b106358
    git clone https://github.com/intel/neural-compressor        # 9b47d09

Importing a file of a checkout executes it. A statement of such a file that fails, such as the import of a package that
is not installed, is left out; a network that needs it is `not importable`. Each network is normalized, traced,
compressed by all axes at once, and by ten random plans of channels. It passes if all of that works, the computed costs
are exact, gradients reach every weight, the teacher is unchanged, and the ONNX file agrees. `refused` is a network with
one line that says why nothing can be done with it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import csv
import importlib.util
import sys
import warnings
from collections import Counter
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from optuna.trial import FixedTrial
from torch import nn

from objectives import Examples
from search.evaluation.first_checks import untrainable_note
from search.study.errors import UserError
from spaces import Imitations, with_plain_layers
from spaces.dependency.checks import RANDOM_OUTPUTS, has_random_outputs
from spaces.network.messages import first_line
from spaces.network.normalizing import normalized
from studies.coverage import RANDOM_PLANS, SPACE, agreement, compressed, crash, without_zeros

if TYPE_CHECKING:
    import types
    from collections.abc import Iterator
    from importlib.abc import PathEntryFinder

    from objectives.trees import Tree

TOLERANCE = 1e-3  # largest difference between file and network, relative to the largest output
SEARCHED = {  # folders of a checkout in which its own imports are found, besides the checkout itself
    "aimet": ("TrainingExtensions/torch/src/python", "TrainingExtensions/common/src/python"),
    "brevitas": ("src",),
    "nncf": ("src",),
    "only_train_once": ("sanity_check/backends",),
}
TABLE = Path(__file__).with_suffix(".txt")  # the networks; its first lines say how they are written


class BatchFirst(nn.Module):
    """Puts the examples first, as slimfront wants them, for a network that wants the steps of sequences first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *sequences: torch.Tensor) -> tuple[Tree, ...]:
        """Return the outputs, the sequence with the examples first, too."""
        first, *others = self.network(*(sequence.transpose(0, 1) for sequence in sequences))
        return (first.transpose(0, 1) if isinstance(first, torch.Tensor) else first, *others)


class Network(NamedTuple):
    """A network of a tool: the file in the folder of checkouts, the expression that builds it, and its inputs."""

    file: str
    expression: str
    inputs: str

    @property
    def peer(self) -> str:
        """The tool."""
        return self.file.partition("/")[0]


def networks() -> list[Network]:
    """Return the networks of the table."""
    found, file = [], ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            found.append(Network(file, *(part.strip() for part in line.split("@"))))
        elif not line.startswith("#"):
            file = line
    return found


class Tolerant(SourceFileLoader):
    """Runs a file statement by statement and leaves out those that fail, such as imports of what is not installed."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the file; then define the classes of its functions, unless the file itself has one of that name."""
        tree = ast.parse(Path(self.path).read_text(encoding="utf-8"))
        for statement in _single(tree.body):
            _tolerantly(statement, module)
        for function in ast.walk(tree):
            for one in function.body if isinstance(function, ast.FunctionDef) else ():
                if isinstance(one, ast.ClassDef) and not hasattr(module, one.name):
                    _tolerantly(one, module)


def _single(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements; an import of several names becomes several, so that one that is missing hides no other."""
    for one in statements:
        if isinstance(one, ast.ImportFrom):
            yield from (ast.copy_location(ast.ImportFrom(one.module, [name], one.level), one) for name in one.names)
        else:
            yield one


def _tolerantly(statement: ast.stmt, module: types.ModuleType) -> None:
    with contextlib.suppress(Exception, SystemExit):
        exec(compile(ast.Module([statement], []), str(module.__file__), "exec"), vars(module))  # noqa: S102 - an import


def module_of(folder: Path, network: Network) -> types.ModuleType:
    """Import the file of a network; other files of its checkout are found, those of other checkouts are not."""
    root = folder / network.peer
    name = f"{network.peer}:{network.file}"
    if name in sys.modules:
        return sys.modules[name]
    sys.path[:] = [str(root / part) for part in ("", *SEARCHED.get(network.peer, ()))] + [
        path for path in sys.path if not path.startswith(str(folder))
    ]
    for other in [other for other in sys.modules if other.partition(".")[0] == "tests"]:
        del sys.modules[other]  # several tools have a package of this name
    spec = importlib.util.spec_from_loader(name, Tolerant(name, str(folder / network.file)))
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs_of(text: str) -> Tree:
    """Return random inputs for a description: several, separated by blanks; `|` joins those in one list or dict."""
    found = []
    for argument in text.split():
        parts = [part.rpartition("=") for part in argument.split("|")]
        values = [_tensor(part) for _, _, part in parts]
        named = {name: value for (name, _, _), value in zip(parts, values, strict=True)}
        found.append(named if parts[0][0] else values[0] if len(values) == 1 else tuple(values))
    return found[0] if len(found) == 1 and isinstance(found[0], torch.Tensor) else tuple(found)


def _tensor(text: str) -> torch.Tensor:
    kind, _, shape = text.rpartition(":")
    sizes = [int(size) for size in shape.split(",")]
    return torch.randint(0, int(kind[1:]), sizes) if kind else torch.randn(sizes)


def verdict(folder: Path, network: Network, *, export: bool) -> tuple[str, str]:
    """Return `pass`, `refused`, `FAILED` or `not importable`, and the reason."""
    torch.manual_seed(0)
    names = {**vars(module_of(folder, network)), "BatchFirst": BatchFirst}
    try:
        given: nn.Module = without_zeros(eval(network.expression, names))  # noqa: S307 - of the table
    except Exception as error:  # noqa: BLE001 - what is missing may show in any way
        return "not importable", first_line(error)
    inputs = inputs_of(network.inputs)
    before = copy.deepcopy(given.state_dict())
    try:
        model = normalized(given, inputs).model
        plain = with_plain_layers(model, inputs)
        SPACE.trace(plain, inputs)
        recovery = Imitations().suggest(FixedTrial(Imitations().usual()))
        untrainable_note(plain, Examples(inputs, None), recovery, torch.device("cpu"))
    except (ValueError, UserError) as error:
        return "refused", first_line(error)
    except Exception as error:  # noqa: BLE001 - one network that fails must not end the table
        return "FAILED", f"{type(error).__name__}: {first_line(error)}"
    if has_random_outputs(plain, inputs):
        return "refused", RANDOM_OUTPUTS
    try:
        found = compressed(plain, inputs)
        crashes = [reason for seed in range(RANDOM_PLANS) if (reason := crash(plain, inputs, seed))]
        difference = agreement(found.finished, inputs) if export else 0.0
    except Exception as error:  # noqa: BLE001 - as above
        return "FAILED", f"{type(error).__name__}: {first_line(error)}"
    same = all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())
    faults = {
        f"{len(crashes)} random plans fail: {crashes[:1]}": bool(crashes),
        "costs are not exact": not found.exact,
        "gradients do not reach every weight": not found.trains,
        "the teacher is changed": not (found.untouched and same),
        f"the file differs by {difference:.1e}": not difference < TOLERANCE,
    }
    wrong = "; ".join(text for text, holds in faults.items() if holds)
    return ("FAILED", wrong) if wrong else ("pass", f"{len(found.anatomy.groups)} groups, file {difference:.1e}")


def main() -> None:
    """Print a row for each network, as soon as it is known, then the counts of each tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds the checkouts")
    parser.add_argument("words", nargs="*", help="parts of tools, files or expressions (default: all)")
    parser.add_argument("--no-export", action="store_true", help="do not write the ONNX files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    folder = options.folder.resolve()
    hook = FileFinder.path_hook((Tolerant, [".py"]))

    def of_peers(path: str) -> PathEntryFinder:
        if not path.startswith(str(folder)):
            raise ImportError
        return hook(path)

    sys.path_hooks.insert(0, of_peers)
    counts: Counter[tuple[str, str]] = Counter()
    table = csv.writer(sys.stdout)
    for network in networks():
        if options.words and not any(word in f"{network.file} {network.expression}" for word in options.words):
            continue
        result, reason = verdict(folder, network, export=not options.no_export)
        counts[network.peer, result] += 1
        table.writerow((network.peer, network.expression, result, reason[:300]))
        sys.stdout.flush()
    for (peer, result), count in sorted(counts.items()):
        table.writerow((peer, "", result, count))


if __name__ == "__main__":
    main()
