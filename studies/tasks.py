"""Five tasks, each with its loss and its metric: keypoints, tags, larger pictures, embeddings, numbers.

    slimfront run studies/tasks.py:keypoints --cpu-seconds 100     ends of a digit, each seen or not; a dict of labels
    slimfront run studies/tasks.py:tags --cpu-seconds 100          which digits are in a picture, several at once
    slimfront run studies/tasks.py:enlarged --cpu-seconds 100      pictures at twice the size, without noise
    slimfront run studies/tasks.py:embeddings --cpu-seconds 100    vectors that are near each other for one digit
    slimfront run studies/tasks.py:numbers --cpu-seconds 100       one number of ten

All but keypoints and embeddings need `pip install slimfront[tasks]`. Teachers are trained once, in at most one CPU
minute of the first run.

Legend: `K` keypoints, `2` column and row of a point over the size of the picture, `E` numbers of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name

from objectives import Examples, Score
from search import Recipe, Splits, trained
from spaces import Imitations
from studies import digits
from studies.pasted_digits import (
    DIGIT,
    HIGH,
    LOW,
    PICTURES,
    SIZE,
    Levels,
    Pasted,
    percent,
    scenes,
    seeded,
    standard,
    study_of,
)

if TYPE_CHECKING:
    from search import StudySpec

POINTS = 3  # top, bottom and middle of a digit
OUTSIDE = 6  # pixels by which a digit may be outside of the picture, so that points are not seen
LEAST_INK = 0.3  # of a pixel that belongs to the digit
NEAR = 2 / SIZE  # largest distance of a point that is found: two pixels
TAGS = 10
EMBEDDING, TEMPERATURE = 32, 0.1  # length of the vectors, and of the loss
ROWS = 4000  # of the table of numbers, for training
TEACHER_RECIPE = Recipe(epochs=10, batch_size=32, learning_rate=3e-3)


def keypoints(runtime: str = "onnx", pictures: int = PICTURES) -> StudySpec:
    """Search for keypoints: the share of points that are found, against bytes.

    Parameters
    ----------
    runtime
        The runtime that executes the files: onnx, litert, tflite-micro, executorch or openvino.
    pictures
        Number of training pictures.
    """
    splits = scenes(point_labels, pictures, most=1, margin=OUTSIDE)
    teacher = trained(seeded(Points), splits.train, TEACHER_RECIPE, loss=loss_of_points)
    score = Score(splits.validation, "found_percent", found_points)
    return study_of("tasks-keypoints", teacher, splits, score, Imitations(loss=loss_of_points), runtime)


def tags(runtime: str = "onnx", pictures: int = PICTURES) -> StudySpec:
    """Search for several tags an example: F1 over all tags, against bytes.

    Parameters
    ----------
    runtime, pictures
        See `keypoints`.
    """
    splits, loss = scenes(tag_labels, pictures), F.binary_cross_entropy_with_logits
    teacher = trained(seeded(Tagged), splits.train, TEACHER_RECIPE, loss=loss)
    f1 = standard("F1Score", task="multilabel", num_labels=TAGS, average="micro")
    score = Score(splits.validation, "f1_percent", f1, convert=tags_and_labels, read=percent)
    return study_of("tasks-tags", teacher, splits, score, Imitations(loss=loss), runtime)


def enlarged(runtime: str = "onnx", pictures: int = PICTURES) -> StudySpec:
    """Search for super-resolution: the ratio of signal to noise at twice the size, against bytes.

    Parameters
    ----------
    runtime, pictures
        See `keypoints`.
    """
    splits = scenes(small_and_large, pictures)
    teacher = trained(seeded(Enlarged), splits.train, TEACHER_RECIPE, loss=F.l1_loss)
    score = Score(splits.validation, "psnr_db", standard("image.PeakSignalNoiseRatio", data_range=1.0))
    return study_of("tasks-enlarged", teacher, splits, score, Imitations(norm=1), runtime)


def embeddings(runtime: str = "onnx") -> StudySpec:
    """Search for embeddings: the share of digits whose nearest other digit is the same one, against bytes.

    Parameters
    ----------
    runtime
        See `keypoints`.
    """
    splits = digits.splits()
    teacher = trained(seeded(Embedded), splits.train, digits.TEACHER_RECIPE, loss=contrastive)
    score = Score(splits.validation, "recall1_percent", NearestIsSame())
    return study_of("tasks-embeddings", teacher, splits, score, Imitations(loss=contrastive), runtime, Recipe(10, 64))


def numbers(runtime: str = "onnx", rows: int = ROWS) -> StudySpec:
    """Search for a regression from a table of numbers: the share of the variance that is explained, against bytes.

    Parameters
    ----------
    runtime
        See `keypoints`.
    rows
        Number of training rows.
    """
    splits = table(rows)
    teacher = trained(seeded(perceptron), splits.train, Recipe(40, 64, 3e-3), loss=F.mse_loss)
    score = Score(splits.validation, "explained_percent", standard("R2Score"), read=percent)
    return study_of("tasks-numbers", teacher, splits, score, Imitations(), runtime, Recipe(10, 64))


def perceptron(width: int = 128) -> nn.Module:
    """Return three linear layers."""
    hidden = (nn.Linear(10, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(*hidden, nn.Linear(width, 1))


class Points(nn.Module):
    """Heatmaps whose mean place is the point (Sun et al. 2018, arXiv:1711.08229), and whether it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.narrow = Levels(), nn.Conv2d(HIGH, LOW, 1)
        self.heat = nn.Sequential(nn.Conv2d(LOW, LOW, 3, padding=1), nn.ReLU(), nn.Conv2d(LOW, POINTS, 1))
        self.seen = nn.Linear(HIGH, POINTS)
        middles = (torch.arange(SIZE // 4) + 0.5) / (SIZE // 4)
        self.register_buffer("grid", torch.cartesian_prod(middles, middles).flip(1))  # column, row

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return `points` (B, K, 2), and `seen` (B, K), the logit that each is in the picture."""
        levels = self.levels(pictures)
        wide = F.interpolate(self.narrow(levels["high"]), scale_factor=2.0, mode="bilinear")
        heat = self.heat(levels["low"] + wide).flatten(2)
        return {"points": heat.softmax(2) @ self.grid, "seen": self.seen(levels["high"].amax((2, 3)))}


def point_labels(made: Pasted) -> dict[str, Tensor]:
    """Return `points` (N, K, 2), and `seen` (N, K), whether each is in the picture."""
    ink = (made.ink[:, 0] > LEAST_INK).float()
    along = torch.arange(DIGIT) + 0.5
    filled = ink.sum(2) > 0  # rows with ink
    ends = filled.float().argmax(1), DIGIT - 1 - filled.flip(1).float().argmax(1)
    every = torch.arange(len(ink))
    places = [torch.stack((_mean(ink[every, row], along), row + 0.5), 1) for row in ends]
    places.append(torch.stack((_mean(ink.sum(1), along), _mean(ink.sum(2), along)), 1))
    points = (torch.stack(places, 1) + made.corners[:, :1].flip(2)) / SIZE
    return {"points": points, "seen": ((points >= 0) & (points <= 1)).all(2).float()}


def _mean(weights: Tensor, along: Tensor) -> Tensor:
    return (weights * along).sum(1) / weights.sum(1)


def loss_of_points(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Return the distance of the points that are seen, in digits, plus the cross-entropy of what is seen."""
    distances = (outputs["points"] - labels["points"]).abs().sum(2) * SIZE / DIGIT
    seen = labels["seen"]
    places = (distances * seen).sum() / seen.sum().clamp_min(1)
    return places + F.binary_cross_entropy_with_logits(outputs["seen"], seen)


def found_points(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> float:
    """Return the share of points that are judged right in percent: found within two pixels, or not seen."""
    seen, said = labels["seen"] > 0, outputs["seen"] > 0
    near = (outputs["points"] - labels["points"]).norm(dim=2) <= NEAR
    return percent(((seen & said & near) | (~seen & ~said)).double().mean())


class Tagged(nn.Module):
    """The largest value of each feature, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.levels, self.head = Levels(), nn.Linear(HIGH, TAGS)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logit of each tag, shape (B, 10)."""
        found: Tensor = self.head(self.levels(pictures)["high"].amax((2, 3)))
        return found


def tag_labels(made: Pasted) -> Tensor:
    """Return which digits are in each picture, shape (N, 10), 0 or 1."""
    return (F.one_hot(made.digits, TAGS) * made.there[..., None]).amax(1).float()


def tags_and_labels(outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the metric of tags takes: probabilities, and integers."""
    return outputs.sigmoid(), labels.long()


class Enlarged(nn.Module):
    """Residual blocks on the small picture, then channels become pixels (Lim et al. 2017, arXiv:1707.02921)."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return pictures of twice the height and width (B, 1, 2H, 2W)."""
        features = self.first(pictures)
        for block in self.blocks:
            features = features + block(features)
        smooth = F.interpolate(pictures, scale_factor=2.0, mode="bilinear")
        return smooth + F.pixel_shuffle(self.last(features), 2)


def small_and_large(made: Pasted) -> Examples:
    """Return pictures at half the size with noise (N, 1, 32, 32), and without noise at full size (N, 1, 64, 64)."""
    clean = torch.zeros(len(made.pictures), SIZE, SIZE)
    for column in range(made.there.shape[1]):
        pixels = made.pixels(column)
        clean[pixels] = made.brightness[pixels[0]] * made.ink[pixels[0][:, 0, 0], column]
    return Examples(F.avg_pool2d(made.pictures, 2), clean[:, None])


class Embedded(nn.Module):
    """The network of the digits study, with a vector of length 1 as answer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = digits.Net()
        self.net.head = nn.Linear(self.net.head.in_features, EMBEDDING)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, E) of images (B, 1, 8, 8)."""
        return F.normalize(self.net(images))


def contrastive(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, equation 2) of vectors (B, E)."""
    itself = torch.eye(len(outputs), dtype=torch.bool, device=outputs.device)
    similar = (outputs @ outputs.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    same = (labels[:, None] == labels) & ~itself
    shares = similar.log_softmax(1).masked_fill(~same, 0.0).sum(1)
    return -(shares / same.sum(1).clamp_min(1)).mean()


class NearestIsSame:
    """Accumulates recall at 1: of all vectors, the share whose nearest other vector has their label, in percent."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all vectors."""
        self._vectors: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        """Add a batch of vectors (B, E) and labels (B,)."""
        self._vectors.append(outputs)
        self._labels.append(labels)

    def compute(self) -> float:
        """Return the share in percent."""
        vectors, labels = torch.cat(self._vectors), torch.cat(self._labels)
        nearest = (vectors @ vectors.T).fill_diagonal_(-torch.inf).argmax(1)
        return percent((labels[nearest] == labels).double().mean())


def table(rows: int = ROWS) -> Splits[Examples]:
    """Return rows of ten numbers, and a function of five of them with noise (Friedman 1991), shape (N, 1)."""
    parts = []
    for seed, count in enumerate((rows, rows // 4, rows // 4)):
        inputs, answers = make_friedman1(count, noise=1.0, random_state=seed)
        parts.append(Examples(torch.tensor(inputs).float(), torch.tensor(answers)[:, None].float() / 10))
    return Splits(*parts)
