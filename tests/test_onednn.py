"""Few channels before a strided 1x1 convolution are never trained in channels-last layout (oneDNN issue 6035)."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor, nn

from objectives import Examples
from search import Recipe
from search.training.fine_tuning import TeacherOutputs, fine_tune
from spaces import Distill

CALL = "from tests.test_onednn import train; train()"


class Shortcut(nn.Module):
    """Three channels that are read by a strided 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.shortcut = nn.Conv2d(3, 24, 1, 2)
        self.layouts: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        images = torch.relu(self.stem(images))
        self.layouts.add(images.is_contiguous())
        answer: Tensor = self.shortcut(images).mean((2, 3))
        return answer


def train() -> Shortcut:
    """Train a network that is passed, like its inputs, in the layout that corrupts the heap."""
    torch.set_num_threads(1)
    student = Shortcut().to(memory_format=torch.channels_last)
    images = torch.randn(256, 3, 17, 17).contiguous(memory_format=torch.channels_last)
    examples = Examples(images, torch.arange(256) % 24)
    recipe = Recipe(4, 16, 2e-3)
    fine_tune(student, TeacherOutputs(Shortcut().eval(), examples), examples, Distill(weight=0.0), recipe, seed=0)
    return student


def test_training_changes_the_layout_that_corrupts_the_heap() -> None:
    student = train()
    assert student.layouts == {True}
    assert student.shortcut.weight.is_contiguous()


def test_a_process_that_trains_a_narrow_shortcut_exits_without_error() -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", CALL], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
