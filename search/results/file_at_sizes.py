"""A file at other sizes of its images, compared with its network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from objectives.runtimes import ExportError
from objectives.runtimes.ends import SizesInSteps
from objectives.runtimes.image_sizes import image_sizes, resized, size_words
from objectives.runtimes.signatures import HasSignatures, signature_name
from objectives.trees import moved, shape_words
from search.evaluation.comparison import COMPARED, compared
from search.results.other_sizes import OTHER_SIZES, at_other_sizes, runs
from spaces.network.messages import first_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from objectives.runtimes import Runtime
    from objectives.trees import Tree
    from search.results.interface import Interface

SIGNATURES = "signatures"  # key of a record: the entry points of a file, if it has several


def ensure_free_sizes(used: Interface, runtime: Runtime, execute: Callable[[Tree], Tree]) -> None:
    """Compare the answers of a file with those of its network at other sizes of its images, where it shall take them.

    Sizes that are one larger, and so odd where the example's are even, are tried where network and file take them.

    Raises
    ------
    ExportError
        If the file does not take them, or answers otherwise.
    """
    if used.ends is None or not used.ends.form.free_size:
        return
    inputs, last = moved(used.examples.example(2), "cpu"), used.ends.form.come_last
    sizes = [(larger, True) for larger in at_other_sizes(inputs, OTHER_SIZES, channels_last=last)]
    if not (isinstance(runtime, SizesInSteps) and runtime.sizes_in_steps):
        sizes += [(larger, False) for larger in at_other_sizes(inputs, ((1, 1),), channels_last=last, more=1)]
    for larger, must in sizes:
        try:
            _noise(used, larger, execute, "--dynamic-size")
        except _DoesNotRun as error:
            if must or runs(used.network, larger):
                raise ExportError(str(error)) from error


def signatures_record(
    used: Interface, path: Path, runtime: Runtime, execute: Callable[[Tree], Tree]
) -> dict[str, list[dict[str, Any]]]:
    """Compare the answers of every entry point of a file with those of its network at that size of its images.

    Returns
    -------
    dict
        Empty for a file with one entry point. Otherwise a list of all: name, size (height and width), types, shapes and
        grids of what it takes and gives, and the signal-to-noise ratio on the first examples with that of rounding.

    Raises
    ------
    ExportError
        If one is missing, does not run, or answers otherwise.
    """
    if used.ends is None or not used.ends.form.sizes:
        return {}
    inputs, last = moved(used.examples.example(COMPARED), "cpu"), used.ends.form.come_last
    there = runtime.signatures_of(path) if isinstance(runtime, HasSignatures) else []
    (own,) = image_sizes(inputs, channels_last=last)
    found = []
    for size in (own, *used.ends.form.sizes):
        name = there[0] if there and size == own else signature_name(size)
        if name not in there:
            raise ExportError(
                f"a file for {runtime.name} must have {name} for --sizes, but it has {there or 'no names'}"
            )
        images = resized(inputs, size, channels_last=last)
        noise = _noise(used, images, execute, f"--sizes {size_words(size)}")
        ends = used.described(images, path, runtime, execute, there.index(name))
        found.append({"name": name, "size": list(size), **ends, **noise})
    return {SIGNATURES: found}


class _DoesNotRun(ExportError):
    """A file that does not take images of a size."""


def _noise(used: Interface, inputs: Tree, execute: Callable[[Tree], Tree], option: str) -> dict[str, float]:
    """Return the signal-to-noise ratio of the answers of a file and the least that is allowed; empty if not finite.

    Raises
    ------
    ExportError
        If the file does not take the inputs, or answers otherwise.
    """
    try:
        found = compared(used.network, inputs, lambda given: used.give(execute(used.take(given))), used.coded())
    except Exception as error:
        raise _DoesNotRun(
            f"the file does not take {shape_words(inputs)}, for which {option} asks: {first_line(error)}"
        ) from error
    if found is None:
        return {}
    if found["sqnr_db"] < found["allowed_sqnr_db"]:
        raise ExportError(
            f"the file answers otherwise than its network to {shape_words(inputs)}: {found['sqnr_db']:.1f} dB, of at "
            f"least {found['allowed_sqnr_db']:.1f}; export it without {option}"
        )
    return {name: found[name] for name in ("sqnr_db", "allowed_sqnr_db")}
