"""The data and the networks of the project's studies."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
import torch

from objectives import Examples, Macs, Parameters
from search import Splits
from search.study.errors import UserError
from spaces import with_plain_layers
from studies import digits, fashion_mnist, moving_digits, recordings, speech_digits

if TYPE_CHECKING:
    from pathlib import Path

FASHION = fashion_mnist.DEBIAN
needs_fashion = pytest.mark.skipif(
    not (FASHION.exists() or "FASHION_MNIST" in os.environ), reason="the files of Fashion-MNIST are not on this machine"
)


def test_the_splits_of_the_digits_are_disjoint_and_stratified() -> None:
    data_splits = digits.splits()
    parts = (data_splits.train, data_splits.validation, data_splits.test)
    assert [len(part) for part in parts] == [1077, 360, 360]
    for part in parts:
        assert part.labels.bincount().float().div(len(part)).sub(0.1).abs().max() < 0.01
    seen = {image.numpy().tobytes() for image in data_splits.train.inputs}
    assert not [image for image in data_splits.test.inputs if image.numpy().tobytes() in seen]


def test_the_teachers_have_the_documented_sizes() -> None:
    image = torch.zeros(1, 1, 28, 28)
    residual = fashion_mnist.Residual().eval()
    assert 2.4e6 < Macs(image)(residual) < 2.6e6
    assert 75_000 < Parameters()(residual) < 80_000
    introductory = fashion_mnist.Introductory().eval()
    assert [tuple(p.shape) for p in introductory.parameters()][::2] == [
        (10, 1, 5, 5), (20, 10, 5, 5), (50, 320), (10, 50)
    ]  # fmt: skip
    assert 1e6 < Macs(torch.zeros(1, 1, 8, 8))(digits.Net().eval()) < 1.4e6
    assert 5e6 < Macs(torch.zeros(1, 1, 49, 20))(speech_digits.DsCnn().eval()) < 6e6
    assert 3e6 < Macs(torch.zeros(1, 1, 49, 20))(speech_digits.Crnn().eval()) < 4e6


def test_augmented_images_are_shifted_and_mirrored_copies() -> None:
    images = torch.rand(64, 1, 28, 28)
    moved = fashion_mnist.flip_and_shift(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    inner = images[..., 8:20, 8:20]
    hits = [
        any(
            torch.equal(candidate[..., 8 + down : 20 + down, 8 + right : 20 + right], original)
            for candidate in (shifted, shifted.flip(-1))
            for down in range(-2, 3)
            for right in range(-2, 3)
        )
        for shifted, original in zip(moved, inner, strict=True)
    ]
    assert all(hits)
    assert not torch.equal(moved, images)


@needs_fashion
def test_fashion_mnist_is_standardized_and_split() -> None:
    data_splits = fashion_mnist.splits()
    assert [len(part) for part in (data_splits.train, data_splits.validation, data_splits.test)] == [54000, 6000, 10000]
    assert abs(float(data_splits.train.inputs.mean())) < 0.01
    assert abs(float(data_splits.train.inputs.std()) - 1) < 0.01


def test_a_tone_lies_in_the_mel_band_of_its_frequency() -> None:
    seconds = torch.arange(recordings.SAMPLE_RATE) / recordings.SAMPLE_RATE
    hertz = 1000.0
    mels = recordings.log_mel(torch.sin(2 * torch.pi * hertz * seconds)[None])
    assert mels.shape == (1, 49, recordings.MELS)
    band = recordings.mel_filters()[round(hertz / recordings.SAMPLE_RATE * recordings.WINDOW)].argmax()
    assert (mels[0].argmax(1) == band).all()


def test_mel_filters_add_up_to_about_one_at_every_frequency() -> None:
    filters = recordings.mel_filters()
    middle = filters[4:-12].sum(1)
    assert ((middle > 0.5) & (middle <= 1.001)).all()


def test_masked_features_keep_their_shape_and_lose_stripes() -> None:
    features = torch.ones(32, 1, 49, 20)
    masked = speech_digits.shift_and_mask(features, torch.Generator().manual_seed(0))
    assert masked.shape == features.shape
    assert 0.5 < float(masked.mean()) < 0.99


def test_the_error_for_a_folder_without_recordings_names_the_setting(tmp_path: Path) -> None:
    expected = (
        f"no recordings such as 0_george_0.wav in {tmp_path}; clone the Free Spoken Digit Dataset and give its folder "
        "with --set data=FOLDER or the environment variable FSDD"
    )
    with pytest.raises(UserError, match=re.escape(expected)):
        recordings.splits(str(tmp_path))


def test_a_network_that_the_study_for_boards_does_not_have_is_named() -> None:
    with pytest.raises(UserError, match="network must be ds-cnn or crnn, but got 'rnn'"):
        speech_digits.board(network="rnn")


def test_recordings_are_split_by_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get(recordings.FOLDER_VARIABLE)
    if not folder:
        pytest.skip("the environment variable FSDD does not name the folder of the recordings")
    monkeypatch.setattr(recordings, "CACHE", tmp_path)
    data_splits = recordings.splits(folder)
    assert [len(part) for part in (data_splits.train, data_splits.validation, data_splits.test)] == [2400, 300, 300]


def test_every_axis_acts_on_the_recurrent_layer_of_the_spoken_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    some = Examples(torch.randn(20, 1, 49, recordings.MELS), torch.arange(20) % 10)
    monkeypatch.setattr(speech_digits, "splits", lambda _: Splits(some, some, some))
    monkeypatch.setattr(speech_digits, "preprocessing", lambda _: None)
    monkeypatch.setattr(speech_digits, "trained", lambda network, *_, **__: network.eval())
    spec = speech_digits.crnn(runtime="onnx")
    anatomy = spec.space.trace(with_plain_layers(spec.teacher, some.inputs), some.inputs)
    inside = [layer.name for layer in anatomy.layers if layer.name.startswith("steps.")]
    assert len(inside) == 4
    for axis in spec.space.steps:
        assert not [name for name in inside if axis.acts_on(anatomy)[name].startswith("no: ")]


def test_digits_move_in_the_direction_of_their_label() -> None:
    data_splits = moving_digits.splits()
    assert [len(part) for part in (data_splits.train, data_splits.validation, data_splits.test)] == [4308, 360, 360]
    clips, labels = data_splits.validation.inputs, data_splits.validation.labels
    place = torch.arange(moving_digits.SIDE).float()
    weight = clips.clamp_min(0.6)
    weight = weight - 0.6  # noise alone is rarely above 0.6
    total = weight.sum((2, 3))
    rows, columns = (weight.sum(3) * place).sum(2) / total, (weight.sum(2) * place).sum(2) / total
    moved = torch.stack((rows[:, -1] - rows[:, 0], columns[:, -1] - columns[:, 0]), 1) / (moving_digits.FRAMES - 1)
    expected = torch.tensor(moving_digits.DIRECTIONS)[labels]
    assert (moved.round() == expected).all(1).float().mean() > 0.95
    assert moving_digits.splits(volume=True).test.inputs.shape == (360, 1, 6, 16, 16)
