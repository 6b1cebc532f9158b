"""The studies that the documentation shows work as a user would type them: in another folder, with another network."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
COMMANDS_PAGE = ROOT / "docs/pages/commands.md"
MOST_LINES = 30  # lines that a user has to write
README_COMMANDS = "inspect", "run", "report", "confirm", "export"
PROJECT = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


class Stripes(Dataset):
    """Noisy images of stripes, in one of four directions, with a plain number as the label."""

    def __init__(self, count, seed):
        dice = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 4
        where = torch.arange(10.0)
        down, right = where[:, None].expand(10, 10), where[None].expand(10, 10)
        kinds = torch.stack([down, right, down + right, down - right])
        waves = torch.sin(kinds[self.labels] + torch.rand(count, 1, 1, generator=dice) * 6)
        self.images = (waves + 0.5 * torch.randn(count, 10, 10, generator=dice))[:, None]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.conv2(x + torch.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


train_set, test = Stripes(256, 0), Stripes(128, 2)
validation_loader = DataLoader(Stripes(128, 1), batch_size=50, shuffle=False)
test_inputs, test_labels = test.images, test.labels

if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = MyNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(10):
        for images, labels in DataLoader(train_set, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
    torch.save(net.state_dict(), "my_net.pt")
'''
IMAGE_PROJECT = """
from pathlib import Path

import torch
from torch import nn


class MyNet(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
        )


if __name__ == "__main__":
    from torchvision.io import write_jpeg

    torch.manual_seed(0)
    for part, count in ("train", 48), ("validation", 24), ("test", 16):
        for index in range(count):
            name = ("falling", "rising")[index % 2]
            down, right = torch.arange(72.0)[:, None], torch.arange(80.0)[None]
            waves = torch.sin((down + (right if index % 2 else -right)) / 6 + 6 * torch.rand(1))
            pixels = (128 + 80 * waves + 30 * torch.randn(3, 72, 80)).clamp(0, 255).to(torch.uint8)
            path = Path("images", part, name, f"{index}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jpeg(pixels, str(path))
    torch.save(MyNet().state_dict(), "my_net.pt")
    from my_images import study

    network = MyNet()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    inputs, labels = study().splits.train.in_memory().batches(64).__next__()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    torch.save(network.state_dict(), "my_net.pt")
"""


def written(name: str, page: str = "docs/pages/network.md") -> str:
    """Return the study that a page shows as a file of this name."""
    found = re.search(rf"```python\n(# {name} .*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found
    return found[1]


def user_folder(folder: Path, study: str, project: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Create a user's folder, with a trained network in it; return a function that runs Python there."""
    (folder / study).write_text(written(study))
    (folder / "my_project.py").write_text(project)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    made = run("my_project.py")
    assert made.returncode == 0, made.stderr
    return run


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python in the folder of the study in full."""
    return user_folder(tmp_path_factory.mktemp("elsewhere"), "my_study.py", PROJECT)


def test_the_studies_are_short() -> None:
    for name in ("my_study.py", "my_images.py"):
        assert len([line for line in written(name).splitlines() if line.strip()]) <= MOST_LINES


@pytest.mark.slow
def test_the_study_leads_to_a_file_that_onnx_runtime_executes(
    typed: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    study = ("my_study.py:study", "--format", "csv")
    inspected = typed("-m", "search", "inspect", *study)
    assert inspected.returncode == 0, inspected.stderr
    rows = {row["layer"]: row for row in csv.DictReader(io.StringIO(inspected.stdout))}
    assert rows["conv1"]["PruneRatios"] == "4-16 of 16 units, together with stem.0"
    assert rows["head"]["PruneRatios"] == "no: its channels stay: they are outputs of the network"

    ran = typed("-m", "search", "run", *study, "--trials", "3")
    assert ran.returncode == 0, ran.stderr
    teacher, *members = csv.DictReader(io.StringIO(ran.stdout))
    assert members
    for member in members:
        assert member["feasible"] == "yes"
        assert float(member["file_worst_recall_percent"]) >= 60
        assert 0 < float(member["file_bytes"]) < float(teacher["size_bytes"])

    out = tmp_path / "out"
    exported = typed("-m", "search", "export", *study, "--pick", "min size_bytes", "--out", str(out))
    assert exported.returncode == 0, exported.stderr
    rebuilt = re.search(r"```python\n(from search.export import rebuild.*?)```", COMMANDS_PAGE.read_text(), re.DOTALL)
    assert rebuilt
    again = rebuilt[1].replace("runs/my-net/export", str(out))
    assert typed("-c", f"from my_project import MyNet\n{again}print(network)").stdout.startswith("MyNet(")
    record = json.loads((out / "verification.json").read_text())
    assert record["worst_recall_percent_file"] == pytest.approx(record["worst_recall_percent_torch"], abs=5)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": np.zeros((3, 1, 10, 10), np.float32)})
    assert answer.shape == (3, 4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[..., subprocess.CompletedProcess[str]]]:
    """Return the folder of the study of images, and a function that runs Python there."""
    folder = tmp_path_factory.mktemp("images")
    run = user_folder(folder, "my_images.py", IMAGE_PROJECT)
    for line in image_commands()[:2]:
        assert run(*line).returncode == 0, line
    return folder, run


def image_commands() -> list[list[str]]:
    """Return the commands that the README shows for the study of images, with a small budget."""
    (shown,) = re.findall(r"```\n(slimfront inspect my_images.py.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [
        shlex.split(line, comments=True) for line in shown.replace("--minutes 30", "--cpu-seconds 10").splitlines()
    ]
    assert [line[:2] for line in lines] == [["slimfront", command] for command in README_COMMANDS]
    return [["-m", "search", *words] for _, *words in lines]


def test_the_study_of_an_image_folder_leads_to_a_file(
    images: tuple[Path, Callable[..., subprocess.CompletedProcess[str]]],
) -> None:
    folder, run = images
    exported = run(*image_commands()[-1])
    assert exported.returncode == 0, exported.stderr
    session = onnxruntime.InferenceSession(folder / "runs/my-images/export/model.onnx")
    (answer,) = session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 64, 64), np.float32)})
    assert answer.shape == (2, 2)
    record = json.loads((folder / "runs/my-images/export/verification.json").read_text())
    assert record["top1_file"] >= 90  # of two classes: chance gives 50


@pytest.mark.slow
def test_the_other_commands_of_the_readme_run(
    images: tuple[Path, Callable[..., subprocess.CompletedProcess[str]]],
) -> None:
    folder, run = images
    for line in image_commands()[2:-1]:
        done = run(*line)
        assert done.returncode == 0, done.stderr
    assert (folder / "runs/my-images/report/front.html").exists()
