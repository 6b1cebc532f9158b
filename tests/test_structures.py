"""Studies of networks with several inputs and outputs, and of data that are streamed, from teacher to verified file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.utils.data import DataLoader, Dataset

from objectives import Agreement, Data, Examples, Latency, Limit, Macs, Score, SizeBytes, Top1
from objectives.trees import leaves, run
from search import Budget, Recipe, Splits, StudySpec
from search.evaluation.reference import bounded, prepared
from search.export import rebuild
from search.loop.run import run as search
from search.proposals.defaults import resolved
from search.results.confirm import confirm
from search.results.export import export as export_files
from search.results.export import verify_front
from search.results.file_records import read_record, record_path
from search.study.front import front
from search.study.storage import open_study
from search.study.weights import state_path
from spaces import BitWidths, Imitations, PruneRatios, Ranks, Space, Temperatures, trace
from spaces.network.normalizing import normalized
from studies.scenes import VOID
from studies.tasks import NearestIsSame, contrastive, found_points, loss_of_points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = (PruneRatios(), Ranks(), BitWidths(weights=(4, 8), activations=(8,)))


def fitted(net: nn.Module, data: Data, loss: Callable[[Any, Any], Tensor], passes: int = 12) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    batches = data.training_batches(32, torch.Generator().manual_seed(0))
    for _ in range(passes * data.steps(32)):
        batch = next(batches)
        optimizer.zero_grad()
        loss(run(net, batch.inputs), batch.labels).backward()
        optimizer.step()
    return net.eval()


class Both(nn.Module):
    """A picture and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.more = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 12, 3)
        self.numbers, self.head = nn.Linear(3, 16), nn.Linear(28, 3)

    def forward(self, picture: Tensor, numbers: Tensor) -> Tensor:
        seen = self.more(self.picture(picture).relu()).relu().mean((2, 3))
        found: Tensor = self.head(torch.cat([seen, self.numbers(numbers).relu()], 1))
        return found


def both(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    pictures = torch.randn(count, 1, 8, 8, generator=generator) + (labels == 0).float()[:, None, None, None]
    numbers = torch.randn(count, 3, generator=generator) + 2 * F.one_hot(labels, 3)
    return Examples((pictures, numbers), labels)


def two_inputs() -> StudySpec:
    torch.manual_seed(0)
    splits = Splits(both(200, 0), both(80, 1), both(80, 2))
    teacher = fitted(Both(), splits.train, F.cross_entropy)
    return StudySpec(
        "two-inputs", teacher, splits, Space(steps=STEPS, recovery=Temperatures()),
        objectives=(Top1(splits.validation), SizeBytes()),
        limits=(Limit(Macs(splits.validation.example()), of_teacher=0.8),),
        recipe=Recipe(epochs=2, batch_size=32, learning_rate=5e-3), budget=Budget(4),
    )  # fmt: skip


class Segmenter(nn.Module):
    """Class maps in a dict, with a second head that is there in training and in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.norm, self.head, self.aux = nn.BatchNorm2d(12), nn.Conv2d(12, 3, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = self.first(x).relu()
        return {"out": self.head(self.norm(self.second(seen)).relu()), "aux": self.aux(seen)}


def maps(count: int, seed: int) -> Examples:
    images = torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(images, 3, 1, 1)[:, 0]
    labels = (smooth > 0).long() + (smooth > 0.3).long()
    labels[:, :2] = VOID
    return Examples(images, labels)


def loss_of_maps(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    main, aux = (F.cross_entropy(outputs[name], labels, ignore_index=VOID) for name in ("out", "aux"))
    return main + 0.4 * aux


def right_pixels(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return 100 * (outputs["out"].argmax(1) == labels)[labels != VOID].double().mean()


def dict_output() -> StudySpec:
    torch.manual_seed(0)
    splits = Splits(maps(96, 0), maps(32, 1), maps(32, 2))
    return StudySpec(
        "dict-output", fitted(Segmenter(), splits.train, loss_of_maps), splits,
        Space(steps=STEPS, recovery=Imitations(loss=loss_of_maps)),
        objectives=(Score(splits.validation, "pixels_percent", right_pixels), SizeBytes()),
        recipe=Recipe(epochs=2, batch_size=32), budget=Budget(4),
    )  # fmt: skip


class Reader(nn.Module):
    """Tokens and a mask, by name; answers of two kinds in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(12, 16), nn.Linear(16, 24)
        self.kind, self.length = nn.Linear(24, 3), nn.Linear(24, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.middle((self.table(ids) * mask[..., None]).sum(1) / 6).relu()
        return self.kind(seen), self.length(seen)


def texts(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 12, (count, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(2, 7, (count, 1), generator=generator)).float()
    kinds = ((ids < 4) * mask).sum(1).long().clamp(max=2)
    return Examples({"ids": ids, "mask": mask}, (kinds, mask.sum(1, keepdim=True)))


def loss_of_texts(outputs: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs[0], labels[0]) + 0.1 * F.mse_loss(outputs[1], labels[1])


def right(outputs: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor]) -> Tensor:
    return 100 * (outputs[0].argmax(1) == labels[0]).double().mean()


def tokens() -> StudySpec:
    torch.manual_seed(0)
    splits = Splits(texts(256, 0), texts(80, 1), texts(80, 2))
    return StudySpec(
        "tokens", fitted(Reader(), splits.train, loss_of_texts), splits,
        Space(steps=STEPS, recovery=Imitations(loss=loss_of_texts)),
        objectives=(Score(splits.validation, "right_percent", right), SizeBytes()),
        recipe=Recipe(epochs=2, batch_size=32, learning_rate=5e-3), budget=Budget(4),
    )  # fmt: skip


class Drawn(Dataset[Any]):
    """Pictures in dicts, moved at random; without labels."""

    def __init__(self, count: int, seed: int) -> None:
        self.pictures = both(count, seed).inputs[0]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.pictures[index].roll(int(torch.randint(3, ())), -1), "name": f"{index}.png"}


def unlabelled() -> StudySpec:
    """A stream without labels: the teacher alone is imitated, and agreement with it is measured."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 3),
    ).eval()  # fmt: skip
    train = Examples.of(DataLoader(Drawn(160, 0), batch_size=32, shuffle=True, drop_last=True), inputs="image")
    validation, test = (Examples(both(64, seed).inputs[0], None) for seed in (1, 2))
    splits: Splits[Any] = Splits(train, validation, test)
    return StudySpec(
        "unlabelled", net, splits, Space(steps=STEPS, recovery=Temperatures()),
        objectives=(Agreement(validation, net), SizeBytes()), recipe=Recipe(epochs=2, learning_rate=5e-3),
        budget=Budget(4),
    )  # fmt: skip


class Bytes(nn.Module):
    """Converts pictures in bytes, as cameras and decoders give them."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.float() / 255 - 0.5


def pictures_in_bytes() -> StudySpec:
    """Pictures that stay bytes until the network converts them."""
    torch.manual_seed(0)

    def some(count: int, seed: int) -> Examples:
        data = both(count, seed)
        return Examples((data.inputs[0] * 30 + 100).clamp(0, 255).to(torch.uint8), data.labels)

    splits = Splits(some(200, 0), some(80, 1), some(80, 2))
    net = nn.Sequential(
        Bytes(), nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip
    return StudySpec(
        "bytes", fitted(net, splits.train, F.cross_entropy), splits, Space(steps=STEPS, recovery=Temperatures()),
        objectives=(Top1(splits.validation), SizeBytes()), recipe=Recipe(epochs=2, learning_rate=5e-3),
        budget=Budget(4),
    )  # fmt: skip


def small(name: str, head: nn.Module, make: Callable[[int, int], Examples], loss: Any, metric: Any) -> StudySpec:
    """A study of two convolutions and a head, for pictures (B, 1, 8, 8)."""
    torch.manual_seed(0)
    splits = Splits(make(200, 0), make(80, 1), make(80, 2))
    net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), head)
    return StudySpec(
        name, fitted(net, splits.train, loss), splits, Space(steps=STEPS, recovery=Imitations(loss=loss)),
        objectives=(Score(splits.validation, "points", metric), SizeBytes()),
        recipe=Recipe(epochs=2, batch_size=32, learning_rate=5e-3), budget=Budget(4),
    )  # fmt: skip


def bright(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return noise with one bright pixel, and its place (N,), 0 to 63."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 64, (count,), generator=generator)
    pictures = 0.1 * torch.rand(count, 64, generator=generator) + F.one_hot(places, 64)
    return pictures.reshape(count, 1, 8, 8), places


def embeddings() -> StudySpec:
    """Vectors of 6 numbers for 16 identities, which are no classes of the outputs."""

    def make(count: int, seed: int) -> Examples:
        pictures, places = bright(count, seed)
        return Examples(pictures, places // 16 * 4 + places % 8 // 2)

    head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 64, 6))
    return small("embeddings", head, make, contrastive, NearestIsSame())


def tags() -> StudySpec:
    """Whether the bright pixel is in the lower half, and whether on the right: any of two."""

    def make(count: int, seed: int) -> Examples:
        pictures, places = bright(count, seed)
        return Examples(pictures, torch.stack([places >= 32, places % 8 >= 4], 1).float())

    def right_tags(outputs: Tensor, labels: Tensor) -> Tensor:
        return 100 * ((outputs > 0) == (labels > 0)).double().mean()

    head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 64, 2))
    return small("tags", head, make, F.binary_cross_entropy_with_logits, right_tags)


class Places(nn.Module):
    """A point and whether it is seen, from features."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.seen = nn.Linear(12 * 64, 2), nn.Linear(12 * 64, 1)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        flat = features.flatten(1)
        return {"points": self.points(flat)[:, None], "seen": self.seen(flat)}


def keypoints() -> StudySpec:
    """The place of the bright pixel, which counts as seen in the upper three quarters."""

    def make(count: int, seed: int) -> Examples:
        pictures, places = bright(count, seed)
        points = torch.stack([places % 8, places // 8], 1)[:, None] / 8
        return Examples(pictures, {"points": points, "seen": (places < 48).float()[:, None]})

    return small("keypoints", Places(), make, loss_of_points, found_points)


def enlarged() -> StudySpec:
    """Pictures at twice the size."""

    def make(count: int, seed: int) -> Examples:
        large = F.avg_pool2d(torch.rand(count, 1, 18, 18, generator=torch.Generator().manual_seed(seed)), 3, 1)
        return Examples(F.avg_pool2d(large, 2), large)

    def decibels(outputs: Tensor, labels: Tensor) -> Tensor:
        return -10 * (outputs - labels).square().mean((1, 2, 3)).log10().mean()

    return small(
        "enlarged", nn.Sequential(nn.Conv2d(12, 4, 3, padding=1), nn.PixelShuffle(2)), make, F.l1_loss, decibels
    )


@pytest.mark.slow
@pytest.mark.parametrize("spec", [embeddings, tags, keypoints, enlarged])
def test_a_study_of_a_task_runs_to_a_verified_file(spec: Callable[[], StudySpec], tmp_path: Path) -> None:
    made = resolved(spec())
    study = open_study(made, tmp_path, None, create=True)
    context, reference = prepared(made, torch.device("cpu"), tmp_path)
    assert search(study, context, tmp_path)
    best = front(study)[0]
    assert verify_front([(best, state_path(tmp_path, best.number))], context, tmp_path, reference) == []
    verified = read_record(record_path(tmp_path, best, made.runtime))
    assert verified["points_file"] == pytest.approx(verified["points_torch"], rel=0.05)
    assert verified["agreement_percent"] is None


@pytest.mark.parametrize("spec", [two_inputs, dict_output, tokens, unlabelled, pictures_in_bytes])
def test_a_study_of_any_structure_runs_from_teacher_to_verified_file(
    spec: Callable[[], StudySpec], tmp_path: Path
) -> None:
    made = resolved(spec())
    study = open_study(made, tmp_path, None, create=True)
    context, reference = prepared(made, torch.device("cpu"), tmp_path)
    context = bounded(study, context)
    assert search(study, context, tmp_path)
    members = front(study)
    assert members
    assert verify_front([(x, state_path(tmp_path, x.number)) for x in members[:1]], context, tmp_path, reference) == []
    (record,) = confirm(members[:1], context, tmp_path, 1)
    assert record[f"test_{made.objectives[0].name}"]["mean"] > 0
    weights = state_path(tmp_path, members[0].number)
    written = export_files(members[0], context, weights, tmp_path / "out", reference)
    assert written["sqnr_db"] > 15
    again, inputs = rebuild(made.teacher, tmp_path / "out"), made.splits.validation.example(3)
    with torch.no_grad():
        pairs = zip(leaves(run(again, inputs)), leaves(run(made.teacher, inputs)), strict=True)
        assert all(one.shape == other.shape for one, other in pairs)


@pytest.mark.parametrize(
    "inputs", [both(4, 0).inputs, dict(zip(("picture", "numbers"), both(4, 0).inputs, strict=True))]
)
def test_channels_of_a_network_with_several_inputs_are_cut(inputs: Any) -> None:
    found = normalized(Both(), inputs).model
    assert not found._forward_hooks, "its forward pass writes nothing that has to be undone"
    anatomy = trace(found, inputs)
    assert {group.name: group.units for group in anatomy.groups} == {"picture": 12, "more": 12, "numbers": 16}
    assert [refusal.layer for refusal in anatomy.refusals] == ["head"]
    with pytest.raises(ValueError, match=r"shape \(1, 2\) and type float32 and shape \(1, 3\) and type float32: "):
        normalized(Both(), (torch.randn(4, 2), torch.randn(4, 3)))


def test_latency_of_a_network_with_several_inputs_is_measured() -> None:
    net, inputs = Both().eval(), both(4, 0).inputs
    latency = Latency(two_inputs().runtime, net, Examples(inputs, None).example(), rounds=6, block_ms=1.0)
    assert latency.share(net) == pytest.approx(1, abs=0.4)
    assert "float32 (1, 1, 8, 8)" in repr(latency)
