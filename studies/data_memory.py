"""How memory and time depend on the number of examples, with images of 224x224 pixels that are made on the fly.

    python -m studies.data_memory --counts 1000 10000 100000 --cpu-seconds 60

Every count is a search of its own, in a process of its own: a small convolutional network, images of noise around one
of four patterns, random crops and flips, a `DataLoader` that shuffles, `slimfront run` with a budget of time. The table
shows the largest resident memory of the process, that before the search began, and the trained candidates.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from objectives import Examples, SizeBytes, Top1
from search import Recipe, Splits, StudySpec
from search.cli import main as slimfront
from spaces import BitWidths, PruneRatios, Ranks, Space, Temperatures

CLASSES, SIZE, BATCH = 4, 224, 32
VALIDATED = 200  # examples that are measured, the same for every count
KIBI = 1024


class Patterns(Dataset[tuple[Tensor, int]]):
    """Images that are made when they are read: stripes of four widths in noise, cropped and flipped at random.

    Parameters
    ----------
    count
        Number of images.
    seed
        Added to the number of an image, which seeds its noise.
    moved
        Whether images are cropped and flipped at random.
    """

    def __init__(self, count: int, seed: int, *, moved: bool) -> None:
        self.count, self.seed, self.moved = count, seed, moved
        self.transform = "RandomCrop, RandomFlip" if moved else None  # as the definition of the study names it

    def __len__(self) -> int:
        """Return the number of images."""
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image (3, 224, 224) and its class."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        label, generator = index % CLASSES, torch.Generator().manual_seed(self.seed + index)
        wave = torch.sin(torch.arange(SIZE + 8) * 0.15 * (1 + label))
        image = wave.expand(3, SIZE + 8, SIZE + 8) + torch.randn(3, SIZE + 8, SIZE + 8, generator=generator)
        if self.moved:
            top, left = torch.randint(8, (2,)).tolist()
            image = image[:, top : top + SIZE, left : left + SIZE]
            image = image.flip(2) if torch.rand(()) < 0.5 else image  # noqa: PLR2004 - half of the images
        return image[:, :SIZE, :SIZE].contiguous(), label


def study(count: int = 1000) -> StudySpec:
    """Return the study on so many images."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=8), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip
    train = Patterns(count, 0, moved=True)
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    for images, labels in DataLoader(torch.utils.data.Subset(train, range(400)), BATCH, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(teacher(images), labels).backward()
        optimizer.step()
    validation = Examples.of(DataLoader(Patterns(VALIDATED, 10**9, moved=False), BATCH))
    test = Examples.of(DataLoader(Patterns(VALIDATED, 2 * 10**9, moved=False), BATCH))
    splits = Splits(Examples.of(DataLoader(train, BATCH, shuffle=True, drop_last=True)), validation, test)
    return StudySpec(
        name=f"data-memory-{count}",
        teacher=teacher.eval(),
        splits=splits,
        space=Space(steps=(PruneRatios(), Ranks(), BitWidths()), recovery=Temperatures()),
        objectives=(Top1(validation), SizeBytes()),
        recipe=Recipe(epochs=1),
    )


def main() -> None:
    """Search with every count, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="*", type=int, default=[1000, 10_000, 100_000], help="numbers of images")
    parser.add_argument("--cpu-seconds", type=float, default=60, help="of each search")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        _search(options.counts[0], options.cpu_seconds, options.folder)
        return
    sys.stdout.write("images    largest memory, MB  before the search, MB  CPU s\n")
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "studies.data_memory", "--counts", str(count), "--folder", folder]
            done = subprocess.run(  # noqa: S603 - this module
                [*command, "--cpu-seconds", str(options.cpu_seconds)], capture_output=True, text=True, check=True
            )
        sys.stdout.write(f"{count:<9} {done.stdout.strip().splitlines()[-1]}\n")
        sys.stdout.flush()


def _search(count: int, cpu_seconds: float, folder: Path) -> None:
    before = _largest_megabytes()
    target = (
        f"studies/data_memory.py:study --set count={count} --cpu-seconds {cpu_seconds} --folder {folder} --device cpu"
    )
    slimfront(["run", *target.split()])
    used = resource.getrusage(resource.RUSAGE_SELF)
    sys.stdout.write(f"{_largest_megabytes():<19.0f} {before:<22.0f} {used.ru_utime + used.ru_stime:.0f}\n")


def _largest_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIBI


if __name__ == "__main__":
    main()
