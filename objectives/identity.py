"""What identifies data: texts and digests that are the same in every process, from a few samples."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch.utils.data import ConcatDataset, Subset

from objectives.trees import leaves

if TYPE_CHECKING:
    from objectives.trees import Tree

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the text of a function, another one in every process
DIGITS = 12  # hexadecimal digits of a digest


class Origin(NamedTuple):
    """What a dataset says of its samples.

    Attributes
    ----------
    classes
        The names of the classes, in the order of the outputs; empty if it does not name them.
    transform
        How it prepares the inputs, in words; empty if it does not say.
    """

    classes: tuple[str, ...] = ()
    transform: str = ""


def origin(dataset: object) -> Origin:
    """Return what a dataset says of its samples; of one that wraps others, what the innermost one says."""
    while (inner := _inner(dataset)) is not None:
        dataset = inner
    names, transform = getattr(dataset, "classes", ()), getattr(dataset, "transform", None)
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return Origin(tuple(names) if named else (), "" if transform is None else ADDRESS.sub("", repr(transform)))


def _inner(dataset: object) -> object:
    """Return the dataset that a dataset wraps, the first one if there are several, None if it wraps none."""
    if isinstance(dataset, ConcatDataset):
        return dataset.datasets[0]
    return None if hasattr(dataset, "classes") else getattr(dataset, "dataset", None)


def exact_digest(tree: Tree) -> str:
    """Return a digest of the bytes of all tensors."""
    digest = hashlib.sha256()
    for tensor in leaves(tree):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:DIGITS]


def coarse_digest(inputs: Tree, labels: Tree) -> str:
    """Return a digest of labels, and of inputs but for the rounding of image decoders on other machines."""
    digest = hashlib.sha256(exact_digest(labels).encode())
    for tensor in leaves(inputs):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {float(tensor.double().mean()):.1e}".encode())
    return digest.hexdigest()[:DIGITS]


def description(dataset: object) -> str:
    """Return what identifies a dataset besides its samples: classes, names of folders, transforms, sizes of parts."""
    if isinstance(dataset, Subset):
        digest = hashlib.sha256(repr(list(dataset.indices)).encode()).hexdigest()[:8]
        return f"Subset {digest} of {description(dataset.dataset)}"
    if isinstance(dataset, ConcatDataset):
        return " + ".join(description(part) for part in dataset.datasets)
    parts = [type(dataset).__name__]
    for name, value in sorted(vars(dataset).items()) if hasattr(dataset, "__dict__") else ():
        if "transform" in name and value is not None:
            parts.append(f"{name} {' '.join(ADDRESS.sub('', repr(value)).split())}")
        elif name in {"root", "folder", "path"} and isinstance(value, str | Path):
            parts.append(f"in {Path(value).name}")
        elif name == "dataset":
            parts.append(f"of {description(value)}")
    return " ".join(parts)
