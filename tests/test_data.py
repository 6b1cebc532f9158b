"""Data as people have them: datasets and loaders that are read anew in every pass, and samples of any structure."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from objectives import Data, Examples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COUNT = 50
INPUTS = torch.arange(COUNT * 8.0).reshape(COUNT, 8)
LABELS = torch.arange(COUNT)


DRAWN = {  # random numbers as transforms draw them
    "": lambda: 0.0, "torch": lambda: float(torch.rand(())), "numpy": np.random.rand, "python": random.random,
}  # fmt: skip


class Pictures(Dataset[tuple[Tensor, int]]):
    """A dataset that counts its readings; its transform adds a random number, drawn as people draw them."""

    def __init__(self, noise: str = "") -> None:
        self.noise, self.read = noise, 0

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        return INPUTS[index] + DRAWN[self.noise](), index


class Flow(IterableDataset[tuple[Tensor, int]]):
    """A stream without a length."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter(zip(INPUTS, range(COUNT), strict=True))


class Ready:
    """A loader of another library: it gives batches."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(INPUTS.split(20), LABELS.split(20), strict=True))


def loader(dataset: Dataset[Any] | None = None, **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset or Pictures(), **({"batch_size": 8, "shuffle": True, "drop_last": True} | settings))


SOURCES: dict[str, Callable[[], Any]] = {
    "a dataset": Pictures,
    "a list": lambda: [(x.numpy(), index) for index, x in enumerate(INPUTS)],
    "a loader that shuffles and drops": loader,
    "a loader with a batch sampler": lambda: DataLoader(
        Pictures(), batch_sampler=BatchSampler(RandomSampler(range(COUNT)), 8, drop_last=True)
    ),
    "a loader with workers": lambda: loader(num_workers=2),
    "a loader of an iterable dataset": lambda: DataLoader(Flow(), batch_size=8),
    "an iterable dataset": Flow,
    "a loader of another library": Ready,
    "a loader without batching": lambda: DataLoader(
        TensorDataset(INPUTS, LABELS), batch_size=None,
        sampler=BatchSampler(SequentialSampler(range(COUNT)), 8, drop_last=False),
    ),
    "tensors": lambda: TensorDataset(INPUTS, LABELS),
}  # fmt: skip


# other tests import JAX, which warns when workers are forked
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:os.fork"),
]


@pytest.mark.parametrize("kind", SOURCES)
def test_every_example_is_measured_once(kind: str) -> None:
    data = Examples.of(SOURCES[kind]())
    inputs, labels = zip(*data.batches(), strict=True)
    assert sorted(torch.cat(labels).tolist()) == list(range(COUNT))
    assert torch.equal(torch.cat(inputs)[torch.cat(labels).argsort()], INPUTS)
    assert len(data) == COUNT
    assert data.classified
    assert data.labelled


@pytest.mark.parametrize("kind", SOURCES)
def test_training_goes_through_the_examples_again_and_again(kind: str) -> None:
    data = Examples.of(SOURCES[kind]())
    steps = data.steps(16)
    assert steps in {3, 6, 7}
    passes = data.training_batches(16, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    seen = [next(passes) for _ in range(2 * steps)]
    assert all(torch.equal(batch.inputs, INPUTS[batch.labels]) for batch in seen)
    assert len(torch.cat([batch.labels for batch in seen[:steps]]).unique()) >= 0.8 * COUNT
    for batch in seen:
        assert batch.keys is None or torch.equal(batch.keys, batch.labels)


def test_a_loader_keeps_its_batch_size_sampler_and_order() -> None:
    data = Examples.of(loader(sampler=SubsetRandomSampler(range(10, 30)), shuffle=None, batch_size=5))
    assert (len(data), data.batch_size(128), data.steps(128)) == (20, 5, 4)
    assert sorted(label for _, labels in data.batches() for label in labels.tolist()) == list(range(10, 30))
    assert set(data.sample(100, 0).labels.tolist()) == set(range(10, 30))
    batch = next(data.training_batches(128, torch.Generator()))
    assert len(batch.inputs) == 5
    weighted = Examples.of(loader(sampler=WeightedRandomSampler([1.0] + [0.0] * (COUNT - 1), 40), shuffle=None))
    assert next(weighted.training_batches(128, torch.Generator())).labels.tolist() == [0] * 8


@pytest.mark.parametrize("noise", ["torch", "numpy", "python"])
def test_transforms_are_random_anew_in_every_pass_and_repeat_with_the_seed(noise: str) -> None:
    data = Examples.of(DataLoader(Pictures(noise), batch_size=COUNT))
    assert not data.repeatable
    passes = data.training_batches(COUNT, torch.Generator())
    first, again = next(passes), next(passes)
    assert not torch.equal(first.inputs, again.inputs)
    assert first.keys is None
    assert torch.equal(data.sample(8, 3).inputs, Examples.of(Pictures(noise)).sample(8, 3).inputs)


def test_drawing_a_sample_does_not_touch_the_random_numbers_of_the_user() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what is tested
    wanted = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002, S311
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    repr(Examples.of(Pictures("torch")))
    assert (torch.rand(()), random.random(), np.random.rand()) == wanted  # noqa: NPY002, S311


def test_a_few_examples_are_read_first_and_a_sample_reads_only_itself() -> None:
    pictures = Pictures()
    data = Examples.of(pictures)
    assert (pictures.read, len(data)) == (16, COUNT)
    sample = data.sample(7, 0)
    assert (pictures.read, len(sample)) == (23, 7)
    assert len(data.sample(7, 0)) == 7
    assert pictures.read == 23
    assert not torch.equal(data.sample(7, 1).inputs, sample.inputs)


def test_the_head_of_a_stream_is_its_first_examples() -> None:
    head = Examples.of(DataLoader(Pictures(), batch_size=8)).head(20)
    assert [labels.tolist() for _, labels in head.batches()] == [[*range(8)], [*range(8, 16)], [*range(16, 20)]]
    assert len(head) == 20
    assert len(Examples.of(Flow()).head(1000)) == COUNT


def test_a_last_batch_of_one_example_is_left_out_of_training() -> None:
    data = Examples.of(DataLoader(Subset(Pictures(), range(9)), batch_size=4))
    passes = data.training_batches(128, torch.Generator())
    assert [len(next(passes).inputs) for _ in range(4)] == [4, 4, 4, 4]


def test_the_definition_of_data_names_them_without_what_is_random() -> None:
    texts = {repr(Examples.of(loader(Pictures("torch"), num_workers=workers))) for workers in (0, 1)}
    assert texts == {"Stream(Pictures, 50 of float32 (1, 8))"}
    still = repr(Examples.of(loader()))
    assert re.fullmatch(r"Stream\(Pictures, 50 of float32 \(1, 8\), sha256 [0-9a-f]{12} of 16\)", still)
    assert still == repr(Examples.of(Pictures()))
    assert still != repr(Examples.of(Subset(Pictures(), range(1, COUNT))))


def test_large_tensors_are_identified_by_some_of_their_examples() -> None:
    large = torch.zeros(10_000, 4)
    one, same = Examples(large, torch.zeros(10_000)), Examples(large.clone(), torch.zeros(10_000))
    assert repr(one) == repr(same)
    other = large.clone()
    other[::40] = 1
    assert repr(Examples(other, torch.zeros(10_000))) != repr(one)


IMAGES = [torch.randn(1, 8, 8) for _ in range(20)]
PICTURE = Image.new("L", (8, 8))
BY_NAME = "got dicts with 'image', 'label'; name the parts: Examples.of(source, inputs='image', labels='label')"
OTHER_FORMS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "dict": ([{"image": x, "label": 1} for x in IMAGES], {}, BY_NAME),
    "(image, label, id)": ([(x, 1, "1.png") for x in IMAGES], {}, "got 3 values, (float32 (16, 1, 8, 8), int64 (16,)"),
    "PIL": ([(PICTURE, 1)] * 20, {}, "inputs must be tensors, but got Image of size (8, 8); convert them in the trans"),
    "PIL alone": ([PICTURE] * 20, {}, "inputs must be tensors, but got Image of size (8, 8)"),
    "sizes": (
        [(x[..., : 6 + i % 3], 1) for i, x in enumerate(IMAGES)],
        {},
        "all have one shape, but got float32 (1, ",
    ),
    "missing": (
        [{"image": x} for x in IMAGES],
        {"inputs": "picture"},
        "have the part 'picture', but got {'image'",
    ),
    "a word": ([("cat", 1)] * 20, {}, "inputs must be tensors of one number of examples, but got"),
    "nothing": ([], {}, "a data source must give examples in every pass, but list gave none"),
    "a generator": ((x for x in IMAGES), {}, "that can be read again, but got generator"),
    "a number": (3, {}, "a data source must be a Dataset, a DataLoader or an iterable of batches"),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_samples_that_cannot_be_used_are_named_with_the_way_out(form: str) -> None:
    source, names, words = OTHER_FORMS[form]
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        Examples.of(source, **names)
    assert "\n" not in str(error.value)


def drawn(source: object, **names: Any) -> Examples:
    found = Examples.of(source, **names).sample(20, 0)
    assert isinstance(found, Examples)
    assert len(found) == 20
    return found


def test_parts_of_samples_can_be_named() -> None:
    found = drawn([{"image": x, "label": i} for i, x in enumerate(IMAGES)], inputs="image", labels="label")
    assert found.inputs.shape == (20, 1, 8, 8)
    assert sorted(found.labels.tolist()) == list(range(20))
    found = drawn([(f"{i}.png", x, i) for i, x in enumerate(IMAGES)], inputs=1, labels=2)
    assert found.labels.shape == (20,)
    found = drawn([{"ids": torch.arange(5), "mask": torch.ones(5), "y": 1.5}] * 20, inputs=("ids", "mask"), labels="y")
    assert {name: x.shape for name, x in found.inputs.items()} == {"ids": (20, 5), "mask": (20, 5)}
    found = drawn(
        [(x, x * 2, 1) for x in IMAGES], inputs=lambda batch: batch[0] + batch[1], labels=lambda batch: batch[2]
    )
    assert found.inputs.shape == (20, 1, 8, 8)


def test_inputs_and_labels_have_any_structure() -> None:
    two = drawn([((x, torch.randn(3)), i % 4) for i, x in enumerate(IMAGES)])
    assert [x.shape for x in two.inputs] == [(20, 1, 8, 8), (20, 3)]
    boxes = drawn([(x, {"boxes": torch.rand(i % 3 + 1, 4)}) for i, x in enumerate(IMAGES)])
    assert {tuple(item["boxes"].shape) for item in boxes.labels} == {(1, 4), (2, 4), (3, 4)}
    assert [len(part) for _, part in boxes.batches(8)] == [8, 8, 4]
    assert not boxes.classified
    masks = drawn([(x, {"mask": torch.zeros(8, 8), "kind": 2}) for x in IMAGES])
    assert masks.labels["mask"].shape == (20, 8, 8)
    tags = drawn([(x, (torch.zeros(5), i)) for i, x in enumerate(IMAGES)])
    assert [part.shape for part in tags.labels] == [(20, 5), (20,)]


@pytest.mark.parametrize("source", [IMAGES, DataLoader(IMAGES, batch_size=2)], ids=["dataset", "by twos"])  # type: ignore[arg-type]
def test_samples_without_labels_are_inputs_alone(source: Any) -> None:
    found = drawn(source)
    assert found.labels is None
    assert not found.labelled
    assert found.inputs.shape == (20, 1, 8, 8)


def test_a_stream_can_be_read_into_memory() -> None:
    stream: Data = Examples.of(Pictures())
    whole = stream.in_memory()  # type: ignore[attr-defined]
    assert torch.equal(whole.inputs, INPUTS)
