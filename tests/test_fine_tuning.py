"""Fine-tuning recovers accuracy reproducibly, and reports a loss that is not finite."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler

from objectives import Examples, Loss, Top1
from search import Recipe, trained
from search.study.errors import Diverged
from search.training.fine_tuning import TeacherOutputs, fine_tune
from spaces import Distill
from tests.small_study import Net, splits, teacher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Generator

    from objectives import Data

TRAIN = splits().train
RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=5e-3)


def student() -> nn.Module:
    torch.manual_seed(3)
    return Net()


class CountingTeacher(nn.Module):
    """A teacher that counts its input examples."""

    def __init__(self) -> None:
        super().__init__()
        self.network = teacher()
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.network(images)  # type: ignore[no-any-return]


def shifted(images: Tensor, generator: Generator) -> Tensor:
    return images + 0.01 * torch.rand(images.shape, generator=generator)


def weights(recipe: Recipe, seed: int) -> dict[str, Tensor]:
    network = student()
    fine_tune(network, TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), recipe, seed)
    return network.state_dict()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_in_mixed_precision_and_leaves_ordinary_weights() -> None:
    seen: set[tuple[torch.dtype, bool]] = set()
    network, on_gpu = student().cuda(), teacher().cuda()
    network.get_submodule("second").register_forward_hook(
        lambda _, __, output: seen.add((output.dtype, output.is_contiguous(memory_format=torch.channels_last)))
    )
    loss = Loss(splits().validation)
    before = loss(network.eval())
    fine_tune(network, TeacherOutputs(on_gpu, TRAIN), TRAIN, Distill(), RECIPE, seed=0)
    on_gpu.cpu()
    (dtype, _), *_ = seen
    assert dtype in {torch.bfloat16, torch.float16}
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in network.parameters())
    assert loss(network) < before


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_the_loss_falls(share: float) -> None:
    network, loss = student(), Loss(splits().validation)
    before = loss(network.eval())
    fine_tune(network, TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(weight=share), RECIPE, 0)
    assert loss(network) < before - 0.3
    assert Top1(splits().validation)(network) > 60


def test_the_network_is_left_in_evaluation_mode() -> None:
    network = student()
    fine_tune(network, TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), RECIPE, 0)
    assert not network.training


def test_teacher_outputs_are_computed_once_for_all_trainings() -> None:
    counting = CountingTeacher()
    shared = TeacherOutputs(counting, TRAIN)
    for seed in range(2):
        fine_tune(student(), shared, TRAIN, Distill(), RECIPE, seed)
    assert counting.seen == len(TRAIN)


def test_cached_outputs_belong_to_the_chosen_examples() -> None:
    chosen = torch.tensor([5, 3, 190])
    cached = TeacherOutputs(teacher(), TRAIN).outputs_of(TRAIN.inputs[chosen], chosen)
    torch.testing.assert_close(cached, teacher()(TRAIN.inputs[chosen]).detach())


class BatchDependent(nn.Module):
    """A teacher whose outputs depend on the other examples of a batch, as rounding makes them do, but more so."""

    def __init__(self) -> None:
        super().__init__()
        self.network = teacher()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) + images.mean()  # type: ignore[no-any-return]


SAMPLES = list(zip(TRAIN.inputs, TRAIN.labels.tolist(), strict=True))
SOURCES: dict[str, Callable[[], Data]] = {
    "tensors": lambda: TRAIN,
    "dataset": lambda: Examples.of(SAMPLES),
    "sampler without a generator": lambda: of_loader(sampler=SubsetRandomSampler(range(20, 120))),
    "sampler with a generator": lambda: of_loader(sampler=SubsetRandomSampler(range(20, 120), torch.Generator())),
    "loader with a generator": lambda: of_loader(shuffle=True, generator=torch.Generator()),
    "batch sampler": lambda: Examples.of(
        DataLoader(SAMPLES, batch_sampler=BatchSampler(RandomSampler(SAMPLES), 16, drop_last=False))  # type: ignore[arg-type]
    ),
}


def of_loader(**settings: Any) -> Data:
    return Examples.of(DataLoader(SAMPLES, batch_size=16, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("recipe", [RECIPE, Recipe(epochs=0.5, batch_size=32, learning_rate=5e-3)])
def test_a_training_does_not_depend_on_those_before_it(source: str, recipe: Recipe) -> None:
    def weights_after(*seeds: int) -> dict[str, Tensor]:
        data = SOURCES[source]()
        shared = TeacherOutputs(BatchDependent(), data)
        for seed in seeds:
            network = nn.Sequential(student(), nn.Dropout())  # draws of the global random numbers
            fine_tune(network, shared, data, Distill(), recipe, seed)
        return network.state_dict()

    alone, second = weights_after(5), weights_after(4, 5)
    assert all(alone[name].equal(second[name]) for name in alone)


class Interrupted(CountingTeacher):
    """A teacher whose second batch is interrupted once."""

    def forward(self, images: Tensor) -> Tensor:
        if 0 < self.seen < 100:
            self.seen = 100
            raise KeyboardInterrupt
        return super().forward(images)


def test_an_interrupted_computation_of_the_teachers_outputs_starts_anew() -> None:
    interrupted = Interrupted()
    shared = TeacherOutputs(interrupted, of_loader())
    keys = torch.tensor([5, 3, 190])
    with pytest.raises(KeyboardInterrupt):
        shared.outputs_of(TRAIN.inputs[keys], keys)
    torch.testing.assert_close(shared.outputs_of(TRAIN.inputs[keys], keys), teacher()(TRAIN.inputs[keys]).detach())
    assert interrupted.seen == 100 + len(TRAIN)


def test_a_pass_of_few_drawn_examples_does_not_compute_the_teacher_on_all() -> None:
    counting = CountingTeacher()
    data = of_loader(sampler=RandomSampler(SAMPLES, num_samples=32))
    fine_tune(student(), TeacherOutputs(counting, data), data, Distill(), RECIPE, 0)
    assert counting.seen == 2 * 32


def test_the_teachers_kept_outputs_are_computed_in_the_loaders_batches() -> None:
    sizes: list[int] = []
    network = teacher()
    network.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    data = of_loader()
    fine_tune(student(), TeacherOutputs(network, data), data, Distill(), RECIPE, 0)
    assert max(sizes) == 16


def test_teacher_outputs_are_computed_again_for_augmented_inputs() -> None:
    counting = CountingTeacher()
    recipe = Recipe(2, 32, 2e-3, augment=shifted)
    fine_tune(student(), TeacherOutputs(counting, TRAIN), TRAIN, Distill(), recipe, 0)
    assert counting.seen == 2 * len(TRAIN)


def test_the_teacher_is_not_changed() -> None:
    before = copy.deepcopy(teacher().state_dict())
    fine_tune(student(), TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), RECIPE, 0)
    assert all(before[name].equal(tensor) for name, tensor in teacher().state_dict().items())
    assert all(parameter.grad is None for parameter in TeacherOutputs(teacher(), TRAIN).model.parameters())


@pytest.mark.parametrize("recipe", [RECIPE, Recipe(2, 32, 2e-3, augment=shifted)])
def test_a_seed_gives_the_same_weights_bit_for_bit(recipe: Recipe) -> None:
    first, again, other = weights(recipe, 5), weights(recipe, 5), weights(recipe, 6)
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["head.weight"].equal(other["head.weight"])


def test_a_loss_that_is_not_finite_is_reported() -> None:
    with pytest.raises(Diverged, match="the loss became nan within 6 of 12 steps; try a lower learning rate"):
        fine_tune(student(), TeacherOutputs(teacher(), TRAIN), TRAIN, Nan(), RECIPE, 0)


@dataclass(frozen=True)
class Nan:
    """A recovery whose loss is NaN."""

    def loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return student.sum() * torch.nan

    def words(self) -> str:
        return ""


def test_an_excessive_learning_rate_diverges() -> None:
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=1e9, optimizer=torch.optim.SGD)
    with pytest.raises(Diverged):
        fine_tune(student(), TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), recipe, 0)


def test_progress_is_reported_after_every_step() -> None:
    reported: list[float] = []
    fine_tune(student(), TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), RECIPE, 0, reported.append)
    assert reported == [(step + 1) / 12 for step in range(12)]


def test_a_batch_has_at_most_the_training_set() -> None:
    reported: list[float] = []
    recipe = Recipe(3, 1000, 2e-3)
    fine_tune(student(), TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), recipe, 0, reported.append)
    assert len(reported) == 3


def test_frozen_parameters_are_not_changed() -> None:
    network = student()
    network.get_parameter("first.weight").requires_grad_(False)  # noqa: FBT003
    before = network.get_parameter("first.weight").clone()
    fine_tune(network, TeacherOutputs(teacher(), TRAIN), TRAIN, Distill(), RECIPE, 0)
    assert network.get_parameter("first.weight").equal(before)


def test_a_teacher_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMFRONT_TEACHERS", str(tmp_path))
    first = trained(student(), TRAIN, RECIPE)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = trained(student(), TRAIN, RECIPE)
    assert path.stat().st_mtime_ns == written
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in first.state_dict().items())
    assert not again.training
    assert Top1(splits().validation)(again) > 60


@pytest.mark.parametrize("change", [{"seed": 1}, {"smoothing": 0.1}, {"recipe": Recipe(1)}])
def test_another_recipe_seed_or_smoothing_is_another_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    monkeypatch.setenv("SLIMFRONT_TEACHERS", str(tmp_path))
    trained(student(), TRAIN, RECIPE)
    trained(student(), TRAIN, **{"recipe": RECIPE, **change})  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 2
