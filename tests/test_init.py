"""`slimfront init` writes a study for the user's network and data that runs as it is; every answer is checked."""

from __future__ import annotations

import ast
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from search.cli import main
from search.study.loader import load
from tests.installed import for_processes

if TYPE_CHECKING:
    from collections.abc import Iterable

CLASSES = "blue", "green", "red"
PICTURES = 20  # of each class
NETWORK = """
import torch
from torch import nn

class TinyNet(nn.Module):
    def __init__(self, channels=3, classes=3):
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 8, 3, stride=2), nn.Linear(8, classes)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(x.mean((2, 3)))

def grey():
    return TinyNet(channels=1)

def needs(width):
    return TinyNet()

def number():
    return 3
"""
DATA = """
import torch
from torch.utils.data import TensorDataset

def images(count=48):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(count))

def pairs():
    return [(images(n), torch.arange(n) % 3) for n in (48, 24, 12)]

def sets():
    return [TensorDataset(*pair) for pair in pairs()]

def tags():
    return [(images(n), (torch.arange(3 * n).reshape(n, 3) % 2).float()) for n in (48, 24, 12)]

def numbers():
    return [(images(n), images(n).mean((2, 3))) for n in (48, 24, 12)]

def unlabelled():
    from slimfront import Examples
    return [Examples(images(n), None) for n in (48, 24, 12)]

def two():
    return pairs()[:2]

def high():
    return [(images(n), torch.arange(n) % 5) for n in (48, 24, 12)]

def wide():
    return [(torch.rand(n, 5, 12, 12), torch.arange(n) % 3) for n in (48, 24, 12)]
"""


def draw(folder: Path, names: Iterable[str] = CLASSES, count: int = PICTURES) -> None:
    """Write noisy pictures of 20 x 24 pixels, of another colour in every class."""
    dice = torch.Generator().manual_seed(0)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = torch.randint(0, 120, (3, 20, 24), generator=dice, dtype=torch.uint8)
            picture[2 - label % 3] += 100
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / name / f"{index}.jpg")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the user's folder, which is the current one: a network, its weights, and pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("my_net", "my_data"):
        sys.modules.pop(name, None)
    (tmp_path / "my_net.py").write_text(NETWORK)
    (tmp_path / "my_data.py").write_text(DATA)
    draw(tmp_path / "pictures")
    space: dict[str, type[torch.nn.Module]] = {}
    exec(NETWORK, space)  # noqa: S102 - the user's file
    torch.save(space["TinyNet"]().state_dict(), "tiny.pt")
    save_file(space["TinyNet"]().state_dict(), "tiny.safetensors")
    torch.save({"state_dict": space["TinyNet"]().state_dict(), "epoch": 3}, "inside.pt")
    torch.save({"head.bias": torch.zeros(3)}, "other.pt")
    (tmp_path / "class.pt").write_bytes(b"no weights")
    return tmp_path


ANSWERS = ["init", "--network", "my_net.py:TinyNet", "--weights", "tiny.pt", "--data", "pictures"]


def answers(**changed: str) -> list[str]:
    """Return the arguments, some of them changed."""
    words = dict(zip(ANSWERS[1::2], ANSWERS[2::2], strict=True))
    words |= {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return ["init", *(word for pair in words.items() for word in pair)]


def typed(*words: str) -> subprocess.CompletedProcess[str]:
    """Run slimfront in the current folder."""
    command = [sys.executable, "-W", "ignore", "-m", "slimfront", *words]
    return subprocess.run(
        command, env=for_processes(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_the_study_of_a_folder_of_images_runs_as_it_is(folder: Path) -> None:
    made = typed(*answers(goal="3x smaller, lose at most 50 points"))
    assert made.returncode == 0, made.stderr
    assert "60 pictures of 3 classes (blue, green, red): 42, 9, 9 for training, validation and test" in made.stderr
    assert "one has the shape (3, 20, 20)" in made.stderr
    assert made.stdout == "my_study.py\n"
    text = Path("my_study.py").read_text()
    assert 'torch.load(HERE / "tiny.pt", map_location="cpu", weights_only=True)' in text
    assert 'goal="3x smaller, lose at most 50 points"' in text
    assert {one.module for one in ast.walk(ast.parse(text)) if isinstance(one, ast.ImportFrom)} == {
        "pathlib", "slimfront", "torch.utils.data", "torchvision.datasets", "torchvision.transforms", "my_net",
    }  # fmt: skip
    assert max(map(len, text.splitlines())) <= 120
    ran = typed("run", "my_study.py:study", "--trials", "2")
    assert ran.returncode == 0, ran.stderr
    assert "file_top1" in ran.stdout


@pytest.mark.slow
def test_the_study_of_a_network_of_torchvision_runs_at_its_usual_size_and_normalization(folder: Path) -> None:
    words = answers(network="torchvision.models:squeezenet1_1(num_classes=3)", weights="none", image_size="32")
    made = typed(*words, "--goal", "none", "--out", "squeeze.py")
    assert made.returncode == 0, made.stderr
    text = Path("squeeze.py").read_text()
    assert "model = squeezenet1_1(num_classes=3)" in text
    assert "v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])" in text
    assert "goal=" not in text
    ran = typed("run", "squeeze.py:study", "--trials", "2", "--unverified")
    assert ran.returncode == 0, ran.stderr
    assert "top1" in ran.stdout


def test_the_usual_size_of_a_network_of_torchvision_is_that_of_its_weights(folder: Path) -> None:
    assert main(answers(network="torchvision.models:resnet18(num_classes=3)", weights="none", out="r.py")) == 0
    text = Path("r.py").read_text()
    assert "v2.Resize(256)" in text
    assert "v2.CenterCrop(224)" in text


class Terminal:
    """A program on a terminal, to which answers are typed."""

    def __init__(self, *words: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-W", "ignore", "-m", "slimfront", *words]
        self.process = subprocess.Popen(
            command, env=for_processes(COLUMNS="200"), stdin=slave, stdout=slave, stderr=slave, close_fds=True
        )
        os.close(slave)
        self._unread = ""

    def until(self, text: str, seconds: float = 120) -> None:
        """Read until a text is shown, after the last one that was waited for."""
        end = time.monotonic() + seconds
        while text not in " ".join(self._unread.split()):
            assert time.monotonic() < end, self._unread
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self._unread += os.read(self._master, 4096).decode()
                except OSError:  # the program has ended
                    end = 0
        self._unread = " ".join(self._unread.split()).partition(text)[2]

    def answer(self, question: str, text: str) -> None:
        """Wait for a question, and type an answer."""
        self.until(question)
        self.until(">")
        os.write(self._master, f"{text}\n".encode())


def test_questions_are_asked_on_a_terminal_until_the_answers_are_right(folder: Path) -> None:
    terminal = Terminal("init", "--runtime", "onnx", "--out", "asked.py")
    terminal.answer("Your network:", "my_net.py:TinyNett")
    terminal.until("no function or class is called 'TinyNett'; the nearest are: TinyNet")
    terminal.answer("Your network:", "my_net.py:TinyNet")
    terminal.answer("Its weights:", "other.pt")
    terminal.until("does not hold the weights of TinyNet: Missing key(s)")
    terminal.answer("Its weights:", "tiny.safetensors")
    terminal.answer("Your data:", "nowhere")
    terminal.until("no folder nowhere")
    terminal.answer("Your data:", "pictures")
    terminal.answer("Height and width", "")
    terminal.answer("normalized for its training:", "0.5, 0.5, 0.5; 0.25, 0.25")
    terminal.until("means and deviations such as")
    terminal.answer("normalized for its training:", "0.5, 0.5, 0.5; 0.25, 0.25, 0.25")
    terminal.answer("The task", "")
    terminal.answer("The goal in words", "as good as it gets")
    terminal.until("cannot be read as a goal")
    terminal.answer("The goal in words", "")
    terminal.until("next: slimfront inspect asked.py:study")
    assert terminal.process.wait(60) == 0
    text = Path("asked.py").read_text()
    assert 'load_file(HERE / "tiny.safetensors")' in text
    assert "v2.Normalize(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])" in text
    assert 'goal="4x smaller, lose at most 1 point"' in text
    assert load(f"{folder / 'asked.py'}:study", []).name == "asked"
    assert {path.name for path in folder.glob("asked*")} == {"asked.py"}


def test_a_terminal_that_is_closed_ends_the_command_and_nothing_is_written(folder: Path) -> None:
    terminal = Terminal("init")
    terminal.answer("Your network:", "my_net.py:TinyNet")
    terminal.answer("Its weights:", "\x04")
    terminal.until("no answer, and nothing is written")
    assert terminal.process.wait(60) == 2
    assert not Path("my_study.py").exists()


@pytest.mark.parametrize(
    ("function", "task", "code"),
    [
        ("pairs", "classes", ["Top1(validation)", "*(Examples(*part) for part in pairs())"]),
        ("sets", "classes", ["Top1(validation)", "*map(Examples.of, sets())"]),
        ("tags", "tags", ['Score(validation, "right_tags_percent", right_tags)', "binary_cross_entropy_with_logits"]),
        ("numbers", "numbers", ["mean_error", 'goal="4x smaller"']),
        ("unlabelled", "unlabelled", ["Agreement(validation, teacher)", "Splits(*unlabelled())"]),
    ],
)
def test_the_task_is_seen_from_the_labels_of_a_function(
    folder: Path, function: str, task: str, code: list[str]
) -> None:
    assert main(answers(data=f"my_data.py:{function}")) == 0
    text = Path("my_study.py").read_text()
    assert all(part in text for part in code)
    spec = load("my_study.py:study", [])
    teacher_value = spec.objectives[0](spec.teacher)
    assert teacher_value >= 0
    again = answers(data=f"my_data.py:{function}", task=task, out="again.py")
    assert main(again) == 0


@pytest.mark.slow
@pytest.mark.parametrize("function", ["tags", "numbers", "unlabelled"])
def test_the_study_of_every_task_runs(folder: Path, function: str) -> None:
    assert main(answers(data=f"my_data.py:{function}", goal="none")) == 0
    ran = typed("run", "my_study.py:study", "--trials", "2", "--unverified")
    assert ran.returncode == 0, ran.stderr


def test_a_network_of_one_channel_gets_grey_pictures(folder: Path) -> None:
    assert main(answers(network="my_net.py:grey", weights="none", normalization="half")) == 0
    text = Path("my_study.py").read_text()
    assert "v2.Grayscale()" in text
    assert "v2.Normalize(mean=[0.5], std=[0.5])" in text
    assert load("my_study.py:study", []).splits.validation.example().shape == (1, 1, 20, 20)


@pytest.mark.parametrize(
    ("subsets", "sizes"),
    [(("train", "val", "test"), (60, 60, 60)), (("train", "valid"), (60, 30, 30)), (("train", "test"), (51, 9, 60))],
)
def test_folders_for_the_splits_are_used(folder: Path, subsets: tuple[str, ...], sizes: tuple[int, ...]) -> None:
    for name in subsets:
        draw(folder / "sets" / name)
    assert main(answers(data="sets")) == 0
    splits = load("my_study.py:study", []).splits
    assert tuple(map(len, (splits.train, splits.validation, splits.test))) == sizes


def test_a_split_is_the_same_at_every_call(folder: Path) -> None:
    assert main(ANSWERS) == 0
    first, second = (load("my_study.py:study", []).splits for _ in range(2))
    assert torch.equal(first.test.inputs, second.test.inputs)
    assert repr(first.train) == repr(second.train)
    assert len({repr(one) for one in (first.train, first.validation, first.test)}) == 3


def test_weights_inside_a_checkpoint_are_found(folder: Path) -> None:
    assert main(answers(weights="inside.pt")) == 0
    assert 'weights_only=True)["state_dict"]' in Path("my_study.py").read_text()


MISTAKES: dict[str, tuple[dict[str, str], str]] = {
    "no function": ({"network": "my_net.py"}, "the network must be named as file.py:name or package.module:name"),
    "no file": ({"network": "nowhere.py:Net"}, "no file nowhere.py"),
    "arguments": ({"network": "my_net.py:needs"}, "needs() failed: TypeError"),
    "no literal": ({"network": "my_net.py:TinyNet(3 + x)"}, "arguments must be numbers and texts"),
    "no network": ({"network": "my_net.py:number"}, "must give a torch.nn.Module, but gave int"),
    "no module": ({"network": "torchvision.model:resnet18"}, "No module named 'torchvision.model'"),
    "elsewhere": ({"network": "../net.py:Net"}, "must be in the folder of the study"),
    "hidden": ({"network": "search.py:Net"}, "not search.py: rename that file"),
    "no weights": ({"weights": "nowhere.pt"}, "no file nowhere.pt"),
    "no such weights": (
        {"network": "torchvision.models:resnet18(num_classes=3)", "weights": "IMAGENET"},
        "resnet18 has no weights of that name; its weights are IMAGENET1K_V1",
    ),
    "other weights": ({"weights": "other.pt"}, "does not hold the weights of TinyNet: Missing key(s)"),
    "damaged weights": ({"weights": "class.pt"}, "class.pt cannot be read as weights"),
    "outputs": (
        {"network": "my_net.py:TinyNet(classes=7)", "weights": "none"},
        "the network has 7 outputs, but",
    ),
    "no pictures": ({"data": "empty"}, "empty must have a folder of pictures for each class: FileNotFoundError"),
    "a broken picture": ({"data": "broken"}, "cannot be read as a picture: UnidentifiedImageError"),
    "other classes": ({"data": "unequal"}, "must have the same classes, but differ in red"),
    "few pictures": ({"data": "few"}, "has too few pictures: none is left for"),
    "a size": ({"image_size": "0"}, "the size of the pictures must be a whole number from 1 to 4,096, but got '0'"),
    "a small size": ({"image_size": "1"}, "the network must take one picture, but fails on (1, 3, 1, 1)"),
    "a normalization": ({"normalization": "mine"}, "the normalization must be none, imagenet, half, or means"),
    "no functions": ({"data": "my_data.py:nothing"}, "no function or class is called 'nothing'"),
    "two splits": ({"data": "my_data.py:two"}, "must return training, validation and test data"),
    "labels": (
        {"data": "my_data.py:high"},
        "labels must be in [0, 3), the outputs of the network, but reach",
    ),
    "inputs": ({"data": "my_data.py:wide"}, "the network fails on an example of my_data.py:wide: RuntimeError"),
    "a task": ({"task": "maps"}, "the task must be classes or unlabelled, by the labels, but got 'maps'"),
    "a runtime": ({"runtime": "abacus"}, "there is no runtime 'abacus'"),
    "a goal": ({"goal": "good"}, "'good' cannot be read as a goal"),
    "no folder": ({"out": "nowhere/x.py"}, "--out must be a .py file in a folder that exists"),
    "a file that exists": ({"out": "my_net.py"}, "my_net.py exists, and nothing is overwritten"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_answer_is_reported_in_one_line_and_nothing_is_written(
    folder: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, message = MISTAKES[mistake]
    (folder / "empty").mkdir()
    draw(folder / "few", count=1)
    draw(folder / "broken")
    for path in (folder / "broken" / "green").glob("*.jpg"):
        path.write_bytes(b"no picture")
    draw(folder / "unequal" / "train")
    draw(folder / "unequal" / "val", ("blue", "green"))
    (folder / "search.py").write_text(NETWORK)
    (folder.parent / "net.py").write_text(NETWORK)
    before = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert main(answers(**changed)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("slimfront: ")
    assert message in last
    assert {path for path in folder.rglob("*") if "__pycache__" not in path.parts} == before


def test_what_is_missing_is_named_where_there_is_no_terminal(folder: Path) -> None:
    result = typed("init")
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("slimfront: --network is missing, and there is no terminal to ask on; what it asks for: ")
