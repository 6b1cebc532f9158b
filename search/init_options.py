"""The options of `slimfront init`: the answers to its questions. Nothing heavy is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from objectives.runtimes.names import RUNTIMES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

INIT_OPTIONS = {
    "network": "file.py:Class, file.py:function or package.module:function that gives the network",
    "weights": "its weights: a file of torch.save or .safetensors, or the name of weights of torchvision",
    "data": "folder of images, or file.py:function that returns training, validation and test data",
    "image-size": "height and width of the images, in pixels",
    "normalization": "none, imagenet, half, or 'means; deviations' of the images",
    "task": "classes, maps, tags, numbers or unlabelled",
    "runtime": f"runtime of the device: {', '.join(RUNTIMES)}",
    "goal": "limits in words, such as '4x smaller, lose at most 1 point', or none",
}


def add_init(
    new: Callable[..., argparse.ArgumentParser], acts: tuple[str, ...], summary: str, text: str, example: str
) -> None:
    """Add the command.

    Parameters
    ----------
    new
        Makes its parser.
    acts, summary, text, example
        See `search.command_line.Command`.
    """
    command = new("init", help=summary, description=text, epilog=f"example: slimfront init {example}")
    for option, what in INIT_OPTIONS.items():
        command.add_argument(f"--{option}", help=what)
    command.add_argument("--out", default="my_study.py", help="file of the study (default: my_study.py)")
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(acts=acts, storage=None, quiet=False, verbose=False)
