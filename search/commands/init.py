"""The command `init`: asks for network, weights, data, task, runtime and goal, and writes a study for them."""

from __future__ import annotations

import importlib.util
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from objectives import answers
from objectives.objective import in_digits
from objectives.runtimes import RUNTIMES, named
from search.commands.given_data import data_of_function
from search.commands.given_network import NONE, network_of, with_weights
from search.commands.given_pictures import (
    NORMALIZATIONS,
    Pictures,
    data_of_pictures,
    normalized,
    pictures_of,
    sized,
    usual_normalization,
    usual_size,
)
from search.commands.study_file import TASKS, Answers, task_words
from search.proposals.defaults import resolved
from search.study.console import console, results_console
from search.study.errors import UserError
from search.study.loader import load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from search.commands.given_data import Data
    from search.commands.given_network import Given

DATA_QUESTION = (
    "Your data: a folder of images, or file.py:function that returns data sets for training, validation and test"
)
# What each runtime imports, and the extra that installs it.
INSTALLED = {
    "onnx": ("onnxruntime", "onnx"),
    "litert": ("litert_torch", "litert"),
    "executorch": ("executorch", "executorch"),
    "tflite-micro": ("tflite_micro", "micro"),
    "openvino": ("openvino", "openvino"),
}
MAPS_DIMENSIONS = 4  # of outputs (B, classes, H, W)
IGNORED_LABEL = 255  # of places without a class
CHECKED = 64  # examples of a function's data whose labels are checked (chosen)


def command(options: argparse.Namespace) -> int:
    """Ask for what the command line does not say, and write the study; return the exit code.

    Raises
    ------
    UserError
        If an answer on the command line is wrong, or one is missing and there is no terminal to ask on.
    """
    out = Path(options.out)
    _ensure_free(out)
    folder = out.resolve().parent
    ask = _Asking(options)
    network = ask("network", "Your network: file.py:Class, file.py:function or package.module:function", None,
                  lambda text: network_of(text, folder))  # fmt: skip
    network = ask("weights", f"Its weights: a file of torch.save or .safetensors; {NONE} if it has them already", NONE,
                  lambda text: with_weights(network, text, folder))  # fmt: skip
    given = ask("data", DATA_QUESTION, None, lambda text: _data(text, network, folder))
    if not isinstance(given, Pictures) and (options.image_size or options.normalization):
        raise UserError("--image-size and --normalization are for a folder of images; a function prepares its data")
    if isinstance(given, Pictures):
        data, fitting = _sized_and_normalized(ask, network, given, folder), ["classes", "unlabelled"]
    else:
        data, fitting = given, _fitting(network, given)
    task = ask("task", f"The task ({task_words()})", fitting[0], lambda text: _task(text, fitting))
    console.print(data.shown)
    runtime = ask("runtime", f"The runtime of the device: {', '.join(RUNTIMES)}", "onnx", _runtime)
    found = Answers(network, data, task, runtime)
    goal = ask("goal", f"The goal in words; {NONE} for no goal", TASKS[task].goal, lambda text: _goal(text, found, out))
    with out.open("x", encoding="utf-8") as file:
        file.write(replace(found, goal=goal).text(out))
    results_console.print(str(out))
    console.print(f"next: slimfront inspect {out}:study, then slimfront run {out}:study")
    return 0


class _Asking:
    """Takes answers from the command line, or from the user on a terminal, until they are right."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._terminal = sys.stdin.isatty()

    def __call__(self, name: str, question: str, usual: str | None, check: Callable[[str], Any]) -> Any:  # noqa: ANN401 - what the check returns
        """Return what the check makes of the answer.

        Parameters
        ----------
        name
            Of the option.
        question
            What is asked.
        usual
            The answer if the user gives none.
        check
            Raises `UserError` for a wrong answer.
        """
        given = getattr(self._options, name)
        if given is None and not self._terminal:
            if usual is None:
                raise UserError(
                    f"--{name} is missing, and there is no terminal to ask on; what it asks for: slimfront init --help"
                )
            given = usual
            console.print(f"--{name.replace('_', '-')} {usual} is taken, since there is no terminal to ask on")
        if given is not None:
            return check(given.strip())
        while True:
            console.print(f"{question}{f' [{usual}]' if usual else ''}")
            try:
                answer = input("> ").strip() or usual
            except EOFError as error:
                raise UserError("no answer, and nothing is written") from error
            if not answer:
                continue
            try:
                return check(answer)
            except UserError as error:
                console.print(str(error))


def _ensure_free(out: Path) -> None:
    """Refuse a file that exists, or whose name cannot be that of a study."""
    if out.exists():
        raise UserError(f"{out} exists, and nothing is overwritten; name another file with --out")
    if out.suffix != ".py" or not out.resolve().parent.is_dir():
        raise UserError(f"--out must be a .py file in a folder that exists, but got {out}")


def _data(text: str, network: Given, folder: Path) -> Pictures | Data:
    """Return a folder of images, or the data of a function."""
    if Path(text).is_dir():
        return pictures_of(Path(text), network)
    if ":" not in text:
        raise UserError(f"no folder {text}; give a folder of images, or file.py:function")
    data = data_of_function(text, network, folder)
    _fitting(network, data)
    return data


def _sized_and_normalized(ask: _Asking, network: Given, pictures: Pictures, folder: Path) -> Data:
    """Ask how pictures are prepared for the network, and return the data."""
    count = len(pictures.classes)
    console.print(f"{count} classes, in {', '.join(pictures.subsets) or 'one folder, which is split'}")
    way = ask("image_size", "Height and width of the pictures that the network takes, in pixels",
              str(usual_size(network, pictures)), lambda text: sized(text, network, pictures))  # fmt: skip
    usual = f"{NONE} (numbers from 0 to 1), {', '.join(NORMALIZATIONS)}, or means; deviations"
    question = f"How the pictures were normalized for its training: {usual}"
    way = ask("normalization", question, usual_normalization(network), lambda text: normalized(text, way))
    return data_of_pictures(pictures, way, folder)


def _fitting(network: Given, data: Data) -> list[str]:
    """Return the tasks that fit outputs and labels, the most likely one first.

    Raises
    ------
    UserError
        If none does.
    """
    outputs, labels = next(iter(answers(network.network, data.splits.validation.head(CHECKED))))
    if labels is None:
        return ["unlabelled"]
    if not (isinstance(outputs, torch.Tensor) and isinstance(labels, torch.Tensor)):
        raise UserError(
            "outputs and labels must be one tensor each, or there must be no labels; write the study by hand for other "
            f"tasks: the outputs are {type(outputs).__name__}, the labels {type(labels).__name__}"
        )
    shapes = f"{tuple(labels.shape)} for outputs of the shape {tuple(outputs.shape)}"
    if labels.is_floating_point() and labels.shape == outputs.shape:
        return [*(["tags"] if bool(((labels == 0) | (labels == 1)).all()) else []), "numbers", "unlabelled"]
    is_maps = outputs.dim() == MAPS_DIMENSIONS
    if labels.is_floating_point() or labels.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise UserError(f"labels must be classes, or numbers of the shape of the outputs, but have the shape {shapes}")
    counted = labels[labels != IGNORED_LABEL] if is_maps else labels
    if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < outputs.shape[1]:
        raise UserError(
            f"labels must be in [0, {outputs.shape[1]}), the outputs of the network, but reach from "
            f"{int(counted.min())} to {int(counted.max())}"
        )
    return ["maps" if is_maps else "classes", "unlabelled"]


def _task(text: str, fitting: list[str]) -> str:
    if text not in fitting:
        raise UserError(f"the task must be {' or '.join(fitting)}, by the labels, but got {text!r}")
    return text


def _runtime(text: str) -> str:
    """Return the name of a runtime that is installed."""
    try:
        name = named(text).name
    except ValueError as error:
        raise UserError(str(error)) from error
    module, extra = INSTALLED[name]
    if importlib.util.find_spec(module) is None:
        raise UserError(f'the runtime {name} is not installed: pip install "slimfront[{extra}]"')
    return text


def _goal(text: str, found: Answers, out: Path) -> str:
    """Return the goal, after the study with this goal has been made from its file."""
    goal = "" if text == NONE else text
    trial = out.resolve().parent / f"{out.stem}_{secrets.token_hex(4)}.py"  # beside it, where it finds its modules
    try:
        trial.write_text(replace(found, goal=goal).text(out), encoding="utf-8")
        spec = resolved(load(f"{trial}:study", []))
        metric, count = spec.objectives[0], len(spec.splits.validation)
        console.print(
            f"the network has {metric.name} {in_digits(metric(spec.teacher.eval()))} on {count} validation "
            "examples; if you know it to be better, its weights, the normalization or the order of classes are wrong"
        )
    finally:
        trial.unlink(missing_ok=True)
    return goal
