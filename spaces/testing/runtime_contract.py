"""The contract of a runtime; a test class inherits it and defines how its runtime is made."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn

from objectives import SizeBytes
from objectives.runtimes import ExportError, Precision
from spaces.axes.bits import BitWidths, Quantize
from spaces.axes.depth import Skip
from spaces.axes.distill import Distill
from spaces.axes.prune import Prune, PruneRatios
from spaces.axes.ranks import Factorize, Ranks
from spaces.dependency.trace import trace
from spaces.network.deploy import deployed
from spaces.network.layers import FLOAT_BITS
from spaces.network.unfused_attention import unfuse_attention
from spaces.plan import Plan
from spaces.testing.networks import (
    CLASSES,
    Mlp,
    Net,
    Plain,
    Residual,
    Separable,
    Straight,
    example,
    scrambled,
    teacher,
)
from spaces.testing.runtime_networks import (
    WIDE,
    WIDTH,
    Attentive,
    Bessel,
    Bottlenecks,
    Joined,
    Pair,
    Pooled,
    Row,
    Shared,
    Shortcut,
)

if TYPE_CHECKING:
    from pathlib import Path

    from objectives.runtimes import Runtime
    from spaces.plan import Axis

EXACT = 80.0  # dB: only the order of floating-point sums differs
INTEGER = 20.0  # dB: integer kernels round more tensors than the network does; these networks are small and random
FLOAT_PAIR = Precision(FLOAT_BITS, FLOAT_BITS)
SIZE_ERROR = 0.03  # largest relative error of the predicted size


KINDS = (("Conv1d", 1), ("Conv2d", 1), ("Conv2d", WIDTH), ("Conv3d", 1), ("ConvTranspose2d", 1), ("Linear", 1))
BLOCKS = (Plain, Separable, Residual, Mlp, Attentive)
PAIRS = list(itertools.combinations(("channels", "ranks", "bits"), 2))


def sqnr(reference: Tensor, other: Tensor) -> float:
    """Return the power of the reference over the power of the difference, in dB."""
    return float(10 * torch.log10(reference.square().mean() / (reference - other).square().mean().clamp_min(1e-30)))


class RuntimeContract:
    """Tests of a runtime: inherit this class, and return the runtime from `make`.

    They export networks of every kind of layer at every declared precision, and check the outputs of the files, the
    bytes (`Runtime.layout` must predict them within 3%), that export is silent and deterministic, and the errors.

    Attributes
    ----------
    needs
        Modules without which the tests are skipped.
    loads
        A module of the extra of the runtime's name that `load` imports; None if there is no such extra.
    extra
        The extra that installs it; by default the name of the runtime.
    lacks
        Kinds of layers that the runtime does not support.
    rejects_operators
        Whether there are operators that the runtime cannot export.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    loads: ClassVar[str | None] = None
    extra: ClassVar[str | None] = None
    lacks: ClassVar[tuple[str, ...]] = ()
    rejects_operators: ClassVar[bool] = True

    def make(self) -> Runtime:
        """Return the runtime."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        for module in self.needs:
            pytest.importorskip(module)

    def agreement(self, model: nn.Module, inputs: Tensor, path: Path) -> float:
        """Export a network to the path; return the SQNR of the outputs of the file on these inputs, in dB."""
        runtime = self.make()
        runtime.export(model, inputs, path)
        with torch.no_grad():
            return sqnr(model(inputs), runtime.load(path)(inputs))

    @pytest.mark.parametrize(("kind", "groups"), KINDS, ids=[f"{kind}-{groups}" for kind, groups in KINDS])
    def test_layers_are_packed_at_the_declared_precisions(self, kind: str, groups: int, tmp_path: Path) -> None:
        torch.manual_seed(0)
        net, runtime = Row(kind, groups).eval(), self.make()
        inputs = torch.randn(32, *net.shape)
        path = tmp_path / f"float.{runtime.suffix}"
        if kind in self.lacks:
            assert runtime.precisions(kind, groups) == ()
            with pytest.raises(ExportError, match=r"but Row fails: .*(aten\.convolution|CONV_3D)"):
                runtime.export(net, inputs, path)
            return
        assert self.agreement(net, inputs, path) > EXACT
        whole, weights = path.stat().st_size, sum(weight.numel() for weight in net.parameters() if weight.dim() > 1)
        for pair in runtime.precisions(kind, groups):
            step = Quantize(tuple((f"row.{place}", *pair) for place in (0, 2, 4)))
            finished = deployed(step.apply(net, inputs), inputs)
            assert self.agreement(finished, inputs, path) > (INTEGER if pair.activations < FLOAT_BITS else EXACT)
            saved = whole - path.stat().st_size
            overhead = 3 * (600 + 32 * WIDTH)  # bytes of quantizers, and of the scales of all channels
            assert saved > weights * (FLOAT_BITS - pair.weights) / 8 - overhead, pair

    @pytest.mark.parametrize("other", ["channels", "ranks", "bits"])
    def test_a_file_contains_nothing_of_removed_branches(self, other: str, tmp_path: Path) -> None:
        runtime, inputs = self.make(), example(teacher(Residual), 64)
        net = teacher(Residual)
        anatomy = trace(net, inputs)
        axes: dict[str, Axis] = {"channels": PruneRatios(), "ranks": Ranks(), "bits": BitWidths(runtime=runtime)}
        act = axes[other].suggest(FixedTrial(axes[other].uniform(anatomy, 0.5)), anatomy)
        skip = Skip(tuple((branch, True) for branch in anatomy.branches))
        steps = (act, skip) if other == "channels" else (skip, act)
        finished = deployed(Plan(steps, Distill()).apply(net, inputs), inputs)
        rounded = other == "bits" and any(pair.activations < FLOAT_BITS for pair in runtime.precisions("Conv2d", 1))
        path = tmp_path / f"less.{runtime.suffix}"
        assert self.agreement(finished, inputs, path) > (INTEGER if rounded else EXACT)
        whole = SizeBytes(runtime)(deployed(Plan((act,), Distill()).apply(net, inputs), inputs))
        assert path.stat().st_size < 0.6 * whole

    @pytest.mark.parametrize(("kind", "count"), [(Bottlenecks, 2), (Straight, 3)])
    def test_consecutive_branches_are_removed(self, kind: type[Net], count: int, tmp_path: Path) -> None:
        net, inputs = scrambled(kind()), torch.randn(16, 3, 8, 8)
        anatomy = trace(net, inputs)
        assert len(anatomy.branches) == count
        skip = Skip(tuple((branch, True) for branch in anatomy.branches))
        finished = deployed(skip.apply(net, inputs), inputs)
        assert self.agreement(finished, inputs, tmp_path / f"less.{self.make().suffix}") > EXACT

    def test_attention_layers_are_packed_and_removed_like_other_layers(self, tmp_path: Path) -> None:
        """Converters fold the scale of attention scores into weights, which changes the scales of the weights."""
        torch.manual_seed(0)
        runtime, inputs = self.make(), torch.randn(32, 6, 10)
        net = unfuse_attention(scrambled(Attentive(WIDE)), inputs)
        anatomy, path = trace(net, inputs), tmp_path / f"model.{runtime.suffix}"
        assert self.agreement(net, inputs, path) > EXACT
        whole = path.stat().st_size
        names = [layer.name for layer in anatomy.layers if layer.name.startswith("attention")]
        pairs = runtime.precisions("Linear", 1) or (Precision(FLOAT_BITS, FLOAT_BITS),)
        pair = min(pairs, key=lambda pair: (pair.weights, -pair.activations))
        finished = deployed(Quantize(tuple((name, *pair) for name in names)).apply(net, inputs), inputs)
        assert self.agreement(finished, inputs, path) > (INTEGER if pair.activations < FLOAT_BITS else EXACT)
        overhead = len(names) * (600 + 32 * WIDE)
        assert whole - path.stat().st_size > len(names) * WIDE**2 * (FLOAT_BITS - pair.weights) / 8 - overhead
        without = deployed(Skip(tuple((branch, True) for branch in anatomy.branches)).apply(net, inputs), inputs)
        assert self.agreement(without, inputs, path) > EXACT
        assert path.stat().st_size < whole - 4 * len(names) * WIDE**2

    @pytest.mark.parametrize("block", BLOCKS, ids=[block.__name__ for block in BLOCKS])
    @pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])
    def test_files_of_two_axes_compute_the_outputs_of_the_network(
        self, block: type[Net], pair: tuple[str, str], tmp_path: Path
    ) -> None:
        runtime, inputs = self.make(), example(teacher(block), 64)
        net = unfuse_attention(teacher(block), inputs)
        anatomy = trace(net, inputs)
        axes: dict[str, Axis] = {"channels": PruneRatios(), "ranks": Ranks(), "bits": BitWidths(runtime=runtime)}
        strengths = {"channels": 0.4, "ranks": 0.5, "bits": 0.7}
        steps = tuple(
            axes[name].suggest(FixedTrial(axes[name].uniform(anatomy, strengths[name])), anatomy) for name in pair
        )
        finished = deployed(Plan(steps, Distill()).apply(net, inputs), inputs)
        agreement = self.agreement(finished, inputs, tmp_path / f"model.{runtime.suffix}")
        assert agreement > (INTEGER if "bits" in pair else EXACT)

    @pytest.mark.parametrize("rounded", ["first", "second", "third", "first second", "first second third head"])
    def test_rounded_layers_are_right_where_tensors_are_joined_averaged_and_shifted(
        self, rounded: str, tmp_path: Path
    ) -> None:
        """Converters took the grid of one tensor for its neighbors, and the bias of a dead channel did not fit."""
        torch.manual_seed(0)
        net, runtime, inputs = Joined().eval(), self.make(), torch.randn(32, *Joined.shape)
        widths = []
        for layer in trace(net, inputs).layers:
            pairs = runtime.precisions(layer.kind, 1) if layer.name in rounded.split() else ()
            pair = min(pairs or (FLOAT_PAIR,), key=lambda pair: (pair.activations, -pair.weights))
            widths.append((layer.name, *pair))
        finished = deployed(Quantize(tuple(widths)).apply(net, inputs), inputs)
        assert self.agreement(finished, inputs, tmp_path / f"model.{runtime.suffix}") > INTEGER

    def test_pooling_and_dropout_between_a_layer_and_its_relu_do_not_change_the_outputs(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        net, runtime, inputs = Pooled().eval(), self.make(), torch.randn(32, *Pooled.shape)
        widths = []
        for layer in trace(net, inputs).layers:
            pairs = runtime.precisions(layer.kind, 1) or (FLOAT_PAIR,)
            widths.append((layer.name, *min(pairs, key=lambda pair: (pair.activations, -pair.weights))))
        finished = deployed(Quantize(tuple(widths)).apply(net, inputs), inputs)
        assert self.agreement(finished, inputs, tmp_path / f"model.{runtime.suffix}") > INTEGER

    @pytest.mark.parametrize(
        "pairs",
        [
            ((FLOAT_BITS, FLOAT_BITS),),
            ((8, FLOAT_BITS),),
            ((4, 8),),
            ((8, 8),),
            ((8, 8), (FLOAT_BITS, FLOAT_BITS)),
            ((FLOAT_BITS, FLOAT_BITS), (FLOAT_BITS, FLOAT_BITS), (8, 8)),
        ],
        ids=str,
    )
    def test_the_size_of_a_file_is_predicted(self, pairs: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
        torch.manual_seed(0)
        net, runtime = scrambled(Shortcut()), self.make()
        inputs = torch.randn(32, *Shortcut.shape)
        widths = []
        for layer, pair in zip(trace(net, inputs).layers, itertools.cycle(pairs), strict=False):
            offered = runtime.precisions(layer.kind, layer.groups)
            widths.append((layer.name, *(pair if pair in offered or not runtime.integers_only else (8, 8))))
        steps = (Prune((("first", 0.25),)), Factorize((("second", 0.5),)), Quantize(tuple(widths)))
        finished = deployed(Plan(steps, Distill()).apply(net, inputs), inputs)
        runtime.export(finished, inputs, tmp_path / "model")
        assert SizeBytes(runtime)(finished) == pytest.approx((tmp_path / "model").stat().st_size, rel=SIZE_ERROR)

    def test_a_file_takes_batches_of_any_size(self, tmp_path: Path) -> None:
        net, runtime = teacher(Plain), self.make()
        path = tmp_path / f"model.{runtime.suffix}"
        runtime.export(net, example(net)[:1], path)
        whole = runtime.load(path)(example(net)[:7])
        assert torch.allclose(whole[2:3], runtime.load(path)(example(net)[2:3]), atol=1e-5)
        assert whole.shape == (7, CLASSES)

    def test_export_is_silent_and_changes_nothing(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
    ) -> None:
        net, runtime = teacher(Plain), self.make()
        finished = deployed(Quantize((("first", 8, 8), ("second", 8, 8))).apply(net, example(net)), example(net))
        before = {name: value.clone() for name, value in finished.state_dict().items()}
        for name in ("first", "second"):
            runtime.export(finished, example(net), tmp_path / name)
        runtime.load(tmp_path / "first")(example(net))
        assert capfd.readouterr() == ("", "")
        assert not recwarn.list
        assert all(torch.equal(before[name], value) for name, value in finished.state_dict().items())
        assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()

    def test_a_model_in_training_mode_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="must be in eval mode to be exported, but Linear is training"):
            self.make().export(nn.Linear(3, 3), torch.randn(1, 3), tmp_path / "model")

    def test_an_unsupported_operator_is_named_in_one_line(self, tmp_path: Path) -> None:
        if not self.rejects_operators:
            pytest.skip("it supports every operator")
        with pytest.raises(ExportError, match=r"^every operator .* but Bessel fails: .*bessel[^\n]*$"):
            self.make().export(Bessel().eval(), torch.randn(1, 3), tmp_path / "model")

    def test_several_outputs_are_all_in_the_file(self, tmp_path: Path) -> None:
        net, inputs, runtime = Pair().eval(), torch.randn(4, 3), self.make()
        runtime.export(net, inputs, tmp_path / "model")
        for expected, found in zip(net(inputs), runtime.load(tmp_path / "model")(inputs), strict=True):
            assert torch.allclose(expected, found, atol=1e-5)

    @pytest.mark.parametrize("bits", [(8, 8), (FLOAT_BITS, FLOAT_BITS)], ids=["integers", "floats"])
    def test_an_output_may_be_read_inside_the_network(self, bits: tuple[int, int], tmp_path: Path) -> None:
        torch.manual_seed(0)
        net, inputs, runtime = Shared().eval(), torch.randn(16, 3, 8, 6), self.make()
        finished = deployed(Quantize((("layer", *bits), ("head", *bits))).apply(net, inputs), inputs)
        runtime.export(finished, inputs, tmp_path / "model")
        with torch.no_grad():
            expected = finished(inputs)
        for one, other in zip(expected, runtime.load(tmp_path / "model")(inputs), strict=True):
            assert one.shape == other.shape
            assert sqnr(one, other) > (INTEGER if bits[1] < FLOAT_BITS else EXACT)

    def test_a_missing_extra_is_named_in_the_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if self.loads is None:
            pytest.skip("it needs no extra")
        (tmp_path / "model").write_bytes(b"")
        monkeypatch.setitem(sys.modules, self.loads, None)
        with pytest.raises(ImportError, match=rf'pip install "slimfront\[{self.extra or self.make().name}\]"'):
            self.make().load(tmp_path / "model")

    def test_it_compares_by_value_and_its_names_are_identifiers(self) -> None:
        runtime = self.make()
        assert runtime == self.make()
        assert runtime.name.replace("-", "_").isidentifier()
        assert runtime.suffix.isidentifier()

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_layers_with_equal_codes_are_both_stored(self, bits: int, tmp_path: Path) -> None:
        """Converters share the bytes of equal integers with different scales, which must be packed only once."""
        first, second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        second.load_state_dict({name: 2 * tensor for name, tensor in first.state_dict().items()})
        net = nn.Sequential(first, nn.ReLU(), second).eval()
        inputs = torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(0))
        finished = deployed(Quantize((("0", bits, FLOAT_BITS), ("2", bits, FLOAT_BITS))).apply(net, inputs), inputs)
        assert self.agreement(finished, inputs, tmp_path / "model") > EXACT
