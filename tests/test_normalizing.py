"""A network enters as its author uses it, and leaves the door in the form that everything behind relies on."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from optuna.trial import FixedTrial
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that everyone knows
from torch.optim.swa_utils import AveragedModel

from objectives import Examples
from search import Budget, Splits, UniformStart
from search.cli import main
from search.evaluation.context import Context
from search.evaluation.reference import bounded, prepared
from search.evaluation.subject import Subject
from search.export import rebuild
from search.loop.run import run
from search.proposals.defaults import resolved
from search.results.export import export
from search.results.exported import STATE_FILE
from search.study.definition import define, fingerprint
from search.study.errors import UserError
from search.study.front import front
from search.study.storage import open_study
from search.study.weights import state_path
from spaces import BitWidths, Ranks, deployed, trace
from spaces.network.normalizing import normalized
from spaces.testing.networks import scrambled
from tests.small_study import study as small_study
from tests.small_study import teacher as small_teacher

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from search import StudySpec

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with norms, and a head."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), norm(8)
        self.mid, self.mid_norm = nn.Conv2d(8, 12, 3, padding=1), norm(12)
        self.head = nn.Linear(12, 4)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.mid_norm(self.mid(F.relu(self.norm(self.conv(x)))))).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))


class Frozen(nn.Module):
    """A norm of fixed statistics, as detection networks have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name, value in (("weight", 1.5), ("bias", 0.1), ("running_mean", 0.2), ("running_var", 0.7)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.get_buffer("weight") * (self.get_buffer("running_var") + self.eps).rsqrt()
        shift = self.get_buffer("bias") - self.get_buffer("running_mean") * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Keeps(Net):
    """Keeps what it computed: on itself, in containers, on a layer, on an object."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.store: dict[str, Any] = {"deep": {}}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.features(x)
        self.seen.append(self.last)
        self.store["deep"]["pair"] = (self.last, 1)
        self.conv.output = self.last
        return self.head(self.store["deep"]["pair"][0])  # type: ignore[no-any-return]


class Counts(Net):
    """Answers differently in every call, by a number and by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.steps: Any
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        return super().forward(x) * self.calls * self.steps  # type: ignore[no-any-return]


class ReturnsNothing(Net):
    """Overrides `train` without returning the network."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]  # noqa: FBT001, FBT002
        super().train(mode)


class Builds(Net):
    """Builds its head in the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.own: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(x)
        if self.own is None:
            self.own = nn.Linear(found.shape[1], 4)
        return self.own(found)  # type: ignore[no-any-return]


class WithoutGradient(Net):
    """Calls its convolutions under no_grad, as a frozen backbone."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.features(x)
        return self.head(found)  # type: ignore[no-any-return]


def net(kind: type[Net] = Net, *arguments: Any) -> Net:
    torch.manual_seed(0)
    return scrambled(kind(*arguments)).eval() if kind is not ReturnsNothing else kind()


def weight_normed() -> Any:
    found: Any = net()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(found.mid)
    nn.utils.spectral_norm(found.conv)
    nn.utils.parametrizations.weight_norm(found.head)
    found(X)  # its weight is now a tensor with a history
    return found


def masked() -> Any:
    found: Any = net()
    nn.utils.prune.l1_unstructured(found.mid, "weight", 0.5)
    return found


def in_inference() -> Any:
    with torch.inference_mode():
        return net()


def partly_wrapped() -> Any:
    found: Any = net()
    found.conv = nn.DataParallel(found.conv)
    return found


FORMS: dict[str, Callable[[], Any]] = {
    "frozen": lambda: net().requires_grad_(requires_grad=False),
    "keeps tensors": lambda: net(Keeps),
    "train returns nothing": lambda: net(ReturnsNothing),
    "data parallel": lambda: nn.DataParallel(net()),
    "averaged": lambda: AveragedModel(net()),
    "wrapped twice": lambda: AveragedModel(nn.DataParallel(net())),
    "compiled": lambda: torch.compile(net()),
    "a layer in a wrapper": partly_wrapped,
    "synchronized norms": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(net()),
    "frozen norms": lambda: net(Net, Frozen),
    "computed weights": weight_normed,
    "masked weights": masked,
    "made in inference mode": in_inference,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_outputs_stay_and_every_copy_can_be_trained_copied_and_shipped(form: str) -> None:
    given = FORMS[form]()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    inner = given._orig_mod if form == "compiled" else given  # compiling takes long
    inner.eval()
    with torch.no_grad():
        expected = inner(X)
    model, _ = normalized(given, X)
    with torch.no_grad():
        assert (model(X) - expected).abs().max() < 1e-5
    assert {name: tensor for name, tensor in given.state_dict().items() if not tensor.equal(before[name])} == {}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "module" not in dict(model.named_children())
    trained = copy.deepcopy(model).train()
    trained(X).square().mean().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    with torch.no_grad():
        assert (deployed(copy.deepcopy(trained), X)(X) - trained.eval()(X)).abs().max() < 1e-5
    anatomy = trace(model, X)
    assert {group.name for group in anatomy.groups} == {"conv", "mid"}
    assert not [layer.name for layer in anatomy.layers if layer.stays]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_converted_and_said(kind: torch.dtype) -> None:
    model, notes = normalized(net().to(kind), X)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert notes == (f"the network's {str(kind).removeprefix('torch.')} weights are converted to 32-bit floats",)


def test_frozen_weights_and_computed_weights_are_said() -> None:
    assert normalized(FORMS["frozen"](), X).notes[0].startswith("10 of 10 weights are frozen (requires_grad=False)")
    assert [note.partition(" of ")[0] for note in normalized(weight_normed(), X).notes] == [
        "spectral_norm", "weight_norm", "WeightNorm",
    ]  # fmt: skip


def _door(kind: type[Net]) -> Any:
    return normalized(net(kind), X).model


def test_what_a_forward_pass_writes_is_undone() -> None:
    counts, keeps = (_door(kind) for kind in (Counts, Keeps))
    assert counts(X).equal(counts(X))
    assert counts.get_buffer("steps") == 0
    keeps(X)
    assert not hasattr(keeps, "last")
    assert not hasattr(keeps.conv, "output")
    assert (keeps.seen, keeps.store) == ([], {"deep": {}})
    counts.train()(X)
    assert counts.get_buffer("steps") == 1  # buffers are part of training


def test_what_is_written_is_undone_after_an_error_too() -> None:
    model: Any = normalized(net(Keeps), X).model
    with pytest.raises(RuntimeError):
        model(X[:, :, :0])
    assert model.seen == []


def test_layers_that_the_first_forward_pass_builds_are_kept() -> None:
    model = normalized(net(Builds), X).model
    assert model(X).equal(model(X))
    assert [layer.name for layer in trace(model, X).layers] == ["conv", "mid", "own"]


def test_lazy_layers_with_loaded_weights_become_layers_and_others_are_refused() -> None:
    lazy, loaded = net(), net()
    lazy.head = loaded.head = nn.LazyLinear(4)
    with pytest.raises(ValueError, match=r"every layer must have its weights, but head \(LazyLinear\) has none yet"):
        normalized(lazy, X)
    loaded.head = nn.LazyLinear(4)
    loaded.load_state_dict(net().state_dict())
    assert type(normalized(loaded, X).model.head) is nn.Linear


def test_a_forward_that_still_runs_the_original_is_refused() -> None:
    patched: Any = net()
    inner = patched.forward
    patched.forward = lambda x: 2 * inner(x)
    with pytest.raises(ValueError, match="was replaced by a function that holds the original module"):
        normalized(patched, X)


def test_the_attribute_that_cannot_be_copied_is_named() -> None:
    odd: Any = net()
    odd.lines = (number for number in range(3))
    with pytest.raises(ValueError, match=r"copy\.deepcopy, but the attribute 'lines' of 'Net' does not"):
        normalized(odd, X)


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "out_channels": lambda m, x: m.head(m.features(x)[:, : m.mid.out_channels]),
    "num_features": lambda m, x: m.head(m.features(x)[:, : m.mid_norm.num_features]),
    "weight.dtype": lambda m, x: m.head(m.features(x.to(m.conv.weight.dtype))),
    "weight.shape": lambda m, x: m.head(m.features(x)).view(-1, m.head.weight.shape[0]),
    "bias": lambda m, x: m.head(m.features(x)) if m.mid.bias is not None and m.head.bias.dim() else x,
    "in_features": lambda m, x: m.head(m.features(x).view(-1, m.head.in_features)),
    "stride and padding": lambda m, x: m.head(m.features(F.pad(x, [m.conv.padding[0] * m.mid.stride[0]] * 4))),
    "eps": lambda m, x: m.head(m.features(x)) + m.norm.eps,
}


class Reads(Net):
    """Reads an attribute of a layer in its forward pass."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return READS[self.what](self, x)


@pytest.mark.parametrize("what", READS)
def test_layers_whose_attributes_are_read_are_factorized_quantized_and_shipped(what: str) -> None:
    model: Any = net(Reads, what)
    anatomy = trace(model, X)
    assert not [layer.name for layer in anatomy.layers if layer.stays]
    for axis in (Ranks(), BitWidths()):
        model = axis.suggest(FixedTrial(axis.uniform(anatomy, 0.5)), anatomy).apply(model, X)
    shipped = deployed(model, X)
    with torch.no_grad():
        assert shipped(X).isfinite().all()
    assert not [module for module in shipped.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_layer_is_kept_where_the_type_of_the_first_parameter_is_read() -> None:
    READS["first"] = lambda m, x: m.head(m.features(x.to(next(m.parameters()).dtype)))
    anatomy = trace(net(Reads, "first"), X)
    assert [layer.name for layer in anatomy.layers if layer.stays] == ["conv"]


def small(teacher: nn.Module, trials: int = 1) -> StudySpec:
    spec = small_study(trials)
    return dataclasses.replace(
        spec, teacher=teacher, limits=(), start=UniformStart(), budget=Budget(trials=trials)
    )  # fmt: skip


def test_an_export_is_rebuilt_bit_for_bit_from_the_network_with_and_without_its_wrapper(tmp_path: Path) -> None:
    spec = resolved(small(AveragedModel(copy.deepcopy(small_teacher()).requires_grad_(requires_grad=False))))
    study = open_study(spec, tmp_path, None, create=True)
    context, reference = prepared(spec, torch.device("cpu"), tmp_path)
    run(study, bounded(study, context), tmp_path)
    member = front(study)[0]
    export(member, context, state_path(tmp_path, member.number), tmp_path / "out", reference)
    state = load_file(tmp_path / "out" / STATE_FILE)
    for given in (spec.teacher, copy.deepcopy(small_teacher())):
        rebuilt = rebuild(given, tmp_path / "out")
        assert all(tensor.equal(state[name]) for name, tensor in rebuilt.state_dict().items())


def test_a_wrapper_does_not_change_the_definition_of_a_study() -> None:
    plain = small_teacher()
    assert fingerprint(nn.DataParallel(plain)) == fingerprint(plain)
    assert define(small(nn.DataParallel(plain))) == define(small(plain))
    assert fingerprint(plain) != fingerprint(copy.deepcopy(plain).bfloat16())


def test_weights_that_no_gradient_reaches_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    spec = small(net(WithoutGradient))
    Context(spec, Subject(spec, torch.device("cpu")))
    assert "no gradient reaches 8 of the 10 weights (conv.weight, conv.bias, norm.weight and 5 more)" in (
        capsys.readouterr().err
    )
    nothing: Any = net()
    nothing.forward = torch.no_grad()(Net.forward).__get__(nothing)
    with pytest.raises(UserError, match="no gradient reaches any weight of the teacher"):
        Context(small(nothing), Subject(small(nothing), torch.device("cpu")))


def broken(what: str) -> Splits[Examples]:
    splits = small_study(1).splits
    inputs, labels = splits.validation.inputs.clone(), splits.validation.labels.clone()
    if what == "nan":
        inputs[5] = torch.nan
    elif what == "shape":
        inputs = inputs[:, :, :6]
    elif what == "labels":
        labels[3] = 9
    return dataclasses.replace(splits, test=Examples(inputs.half() if what == "type" else inputs, labels))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nan", "1 of .* test inputs contain nan or infinity, the first at index 5"),
        (
            "shape",
            "all splits must have inputs of one shape and type, but one of the test split is .*; all examples need",
        ),
        ("type", r"all splits must have inputs of one shape and type, but one .* float32 \(1, [\d, ]*\)$"),
        ("labels", "the test split has labels from 0 to 9"),
    ],
)
def test_a_faulty_test_split_is_reported_before_anything_takes_long(what: str, words: str, tmp_path: Path) -> None:
    spec = dataclasses.replace(small(small_teacher()), splits=broken(what))
    with pytest.raises(UserError, match=words):
        prepared(spec, torch.device("cpu"), tmp_path)


def test_inspect_shows_the_teacher_the_smallest_plan_and_each_reason_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "tests/small_study.py:study"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("teacher: top1 ")
    assert "the smallest plan: size_bytes" in printed
    assert "PruneRatios, 1 layer: its channels stay: they are outputs of the network (head)" in printed
    assert "2 BatchNorm2d: cut with the layers around them (first_norm, second_norm)" in printed
