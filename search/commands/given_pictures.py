"""A folder of images, as `slimfront init` asks for it: its classes, how images are prepared, and how it is split."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import random_split
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from objectives import Examples
from search.commands.given_data import Data, attempt
from search.commands.given_network import NONE, TORCHVISION, place, weights_names
from search.study.errors import UserError
from search.study.spec import Splits
from spaces.network.messages import first_line, listed

if TYPE_CHECKING:
    from pathlib import Path

    from search.commands.given_network import Given

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZATIONS = {"imagenet": IMAGENET, "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
USUAL_SIZE = 224  # pixels, of networks for photographs
LARGEST_SIZE = 4096  # pixels (chosen); more is a slip
MOST_BYTES_HELD = 2**30  # of all pictures, up to which the study holds them in memory (chosen)
FLOAT_BYTES = 4
# Parts of pictures that are split (chosen)
SHARES_OF_ALL, SHARES_OF_TRAINING, HALVES = (0.7, 0.15, 0.15), (0.85, 0.15), (0.5, 0.5)
VALIDATION_NAMES = "val", "valid", "validation"


@dataclass(frozen=True)
class Pictures:
    """A folder of images, one folder for each class, at the top or in folders for training, validation and test.

    Attributes
    ----------
    folder
        The folder.
    subsets
        The names of the folders train, val and test, if there are any.
    classes
        The classes, in the order of the outputs.
    """

    folder: Path
    subsets: tuple[str, ...]
    classes: tuple[str, ...]


def pictures_of(folder: Path, network: Given) -> Pictures:
    """Return the pictures of a folder, whose classes are those of the network.

    Raises
    ------
    UserError
        If there are none, the folders differ in their classes, or a picture cannot be read.
    """
    inside = {path.name for path in folder.iterdir() if path.is_dir()}
    held = next((name for name in VALIDATION_NAMES if name in inside), None)
    subsets = tuple(name for name in ("train", held, "test") if name in inside) if "train" in inside else ()
    if len(subsets) == 1:
        raise UserError(f"{folder} has a folder train, but neither val nor test; add one, or name {folder / 'train'}")
    classes: dict[str, list[str]] = {}
    for part in subsets or ("",):
        found = _read(folder / part)
        classes[part] = found.classes
        first = {label: path for path, label in reversed(found.samples)}
        for path in first.values():
            attempt(functools.partial(found.loader, path), f"{path} cannot be read as a picture")
    (first_name, names), *others = classes.items()
    for other, differing in others:
        if differing != names:
            odd = listed(sorted({*names} ^ {*differing}))
            raise UserError(
                f"{folder / first_name} and {folder / other} must have the same classes, but differ in {odd}"
            )
    pictures = Pictures(folder, subsets, tuple(names))
    outputs = _tried(usual_size(network, pictures), network, pictures)[1]
    if outputs is not None:  # otherwise another size may help
        _check_classes(outputs, pictures)
    return pictures


def usual_size(network: Given, pictures: Pictures) -> int:
    """Return the size that pictures should have: that of torchvision's weights, or their own up to 224 pixels."""
    preset = _preset(network)
    if preset is not None:
        return int(preset.crop_size[0])
    width, height = _first(pictures).size
    return int(min(width, height, USUAL_SIZE))


def usual_normalization(network: Given) -> str:
    """Return the normalization that a network has been trained with, as far as that is known."""
    return "imagenet" if _preset(network) is not None else NONE


def sized(text: str, network: Given, pictures: Pictures) -> list[v2.Transform]:
    """Return the transforms to a size in pixels, and to grey where the network takes one channel; try the network.

    Raises
    ------
    UserError
        If this is no size, or the network does not take such pictures.
    """
    if not text.isdigit() or not 1 <= int(text) <= LARGEST_SIZE:
        raise UserError(f"the size of the pictures must be a whole number from 1 to {LARGEST_SIZE:,}, but got {text!r}")
    way, outputs, errors = _tried(int(text), network, pictures)
    if outputs is None:
        raise UserError(f"the network must take one picture, but fails on {'; and on '.join(errors)}")
    _check_classes(outputs, pictures)
    return way


def _tried(size: int, network: Given, pictures: Pictures) -> tuple[list[v2.Transform], object, list[str]]:
    """Return the transforms to a size and the outputs for a picture, in colours or grey; else the errors."""
    first = _first(pictures)
    preset = _preset(network)
    edge = int(preset.resize_size[0]) if preset is not None and int(preset.crop_size[0]) == size else size
    steps = [v2.Resize(edge), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    errors = []
    for way in (steps, [v2.Grayscale(), *steps]):
        picture = v2.Compose(way)(first)[None]
        try:
            with torch.no_grad():
                return way, network.network(picture), []
        except Exception as error:  # noqa: BLE001 - a network may refuse a picture in any way
            errors.append(f"{tuple(picture.shape)}: {first_line(error)}")
    return steps, None, errors


def normalized(text: str, way: list[v2.Transform]) -> list[v2.Transform]:
    """Return the transforms with a normalization: `none`, `imagenet`, `half`, or means and deviations.

    Raises
    ------
    UserError
        If it cannot be read.
    """
    if text == NONE:
        return way
    channels = 1 if isinstance(way[0], v2.Grayscale) else 3
    if text in NORMALIZATIONS:
        mean, deviation = ([sum(one) / 3] if channels == 1 else [*one] for one in NORMALIZATIONS[text])
    else:
        try:
            mean, deviation = ([float(word) for word in part.split(",")] for part in text.split(";"))
        except ValueError:
            mean = deviation = []
        if len(mean) != channels or len(deviation) != channels or not all(value > 0 for value in deviation):
            example = "0.5; 0.25" if channels == 1 else "0.5, 0.5, 0.5; 0.25, 0.25, 0.25"
            raise UserError(
                f"the normalization must be {NONE}, {', '.join(NORMALIZATIONS)}, or means and deviations such as "
                f"{example!r}, but got {text!r}"
            )
    return [*way, v2.Normalize([round(value, 4) for value in mean], [round(value, 4) for value in deviation])]


def data_of_pictures(pictures: Pictures, way: list[v2.Transform], folder: Path) -> Data:
    """Return the data of a folder of images, for a study in a folder."""
    transform = v2.Compose(way)
    sets = [ImageFolder(pictures.folder / name, transform) for name in pictures.subsets or ("",)]
    parts = [*sets]
    seeded = "torch.Generator().manual_seed(0)"
    if not pictures.subsets:
        parts = _split(sets[0], SHARES_OF_ALL)
        lines = ["images = ImageFolder(IMAGES, TRANSFORM)", f"parts = random_split(images, {SHARES_OF_ALL}, {seeded})"]
    elif len(sets) == 3:  # noqa: PLR2004 - train, val and test
        lines = [f"parts = [ImageFolder(IMAGES / name, TRANSFORM) for name in {pictures.subsets}]"]
    elif pictures.subsets[1] == "test":
        parts = [*_split(sets[0], SHARES_OF_TRAINING), sets[1]]
        lines = [
            'images, test = (ImageFolder(IMAGES / name, TRANSFORM) for name in ("train", "test"))',
            f"train, validation = random_split(images, {SHARES_OF_TRAINING}, {seeded})",
            "parts = train, validation, test",
        ]
    else:
        parts = [sets[0], *_split(sets[1], HALVES)]
        lines = [
            f"train, held = (ImageFolder(IMAGES / name, TRANSFORM) for name in {pictures.subsets})",
            f"validation, test = random_split(held, {HALVES}, {seeded})",
            "parts = train, validation, test",
        ]
    if empty := [name for name, part in zip(("train", "validation", "test"), parts, strict=True) if not len(part)]:
        raise UserError(f"{pictures.folder} has too few pictures: none is left for {' and '.join(empty)}")
    shape = tuple(sets[0][0][0].shape)
    count = sum(map(len, parts))
    held = count * FLOAT_BYTES * torch.Size(shape).numel() <= MOST_BYTES_HELD
    memory = ".in_memory()" if held else ""
    lines.append(f"return Splits(*(Examples.of(part){memory} for part in parts))")
    imports = {"torch": (), "torchvision.datasets": ("ImageFolder",), "torchvision.transforms": ("v2",)}
    if len(pictures.subsets) != 3:  # noqa: PLR2004
        imports["torch.utils.data"] = ("random_split",)
    constants = (f"IMAGES = {place(pictures.folder, folder)}", *_compose(way))
    shown = (
        f"{count:,} pictures of {len(pictures.classes)} classes ({listed(pictures.classes)}): "
        f"{', '.join(f'{len(part):,}' for part in parts)} for training, validation and test; one has the shape {shape}"
    )
    return Data(Splits(*map(Examples.of, parts)), imports, constants, tuple(lines), shown)


def _split(images: Any, shares: tuple[float, ...]) -> Any:  # noqa: ANN401 - data sets
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an empty part, which is an error below
        return random_split(images, shares, torch.Generator().manual_seed(0))


def _compose(way: list[v2.Transform]) -> tuple[str, ...]:
    """Return the lines that make the transforms."""
    written = []
    for step in way:
        if isinstance(step, v2.Normalize):
            written.append(f"v2.Normalize(mean={list(step.mean)}, std={list(step.std)}),")
        elif isinstance(step, v2.Resize | v2.CenterCrop):
            written.append(f"v2.{type(step).__name__}({step.size[0]}),")
        elif isinstance(step, v2.ToDtype):
            written.append("v2.ToDtype(torch.float32, scale=True),")
        else:
            written.append(f"v2.{type(step).__name__}(),")
    return ("TRANSFORM = v2.Compose(", "    [", *(f"        {line}" for line in written), "    ]", ")")


def _check_classes(outputs: object, pictures: Pictures) -> None:
    """Compare the outputs for one picture with the classes of a folder."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:  # noqa: PLR2004 - (1, classes)
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(
            f"for the classes of a folder the network must return the shape (1, classes), but returns {shape}"
        )
    if outputs.shape[1] != len(pictures.classes):
        raise UserError(
            f"the network has {outputs.shape[1]} outputs, but {pictures.folder} has {len(pictures.classes)} classes "
            f"({listed(pictures.classes)}); there must be one output for each, in the order of their names: name the "
            f"network with as many, such as torchvision.models:resnet18(num_classes={len(pictures.classes)})"
        )


def _preset(network: Given) -> Any:  # noqa: ANN401 - torchvision has no types
    """Return the transforms of torchvision's weights for a network of it, None for another."""
    if network.named.module != TORCHVISION:
        return None
    if not weights_names(network.named.name):
        return None
    preset = models.get_model_weights(network.named.name).DEFAULT.transforms()
    return preset if hasattr(preset, "crop_size") else None


def _first(pictures: Pictures) -> Any:  # noqa: ANN401 - a picture of PIL
    return _read(pictures.folder / (pictures.subsets or ("",))[0])[0][0]


def _read(folder: Path) -> ImageFolder:
    return attempt(lambda: ImageFolder(folder), f"{folder} must have a folder of pictures for each class")
