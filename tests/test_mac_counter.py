"""What counts as a multiply-add, by hand, and what is named because it cannot be counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's usual name
from torchvision.ops import DeformConv2d

from objectives import Macs
from objectives.mac_counter import count, uncounted, uncounted_words
from search.results.inspection import counted, inspection, percent_acted_on
from spaces import trace
from tests.small_study import study

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, FEATURES, UNITS = 7, 6, 10
SEQUENCES = torch.randn(2, STEPS, FEATURES)
IMAGES = torch.randn(2, 4, 8, 8)
KINDS: dict[Any, int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}  # gates


class Computes(nn.Module):
    """A network that is one function of its input and of a module."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], part: nn.Module | None = None) -> None:
        super().__init__()
        self.part = part or nn.Identity()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.part, x)


def macs(
    function: Callable[[nn.Module, Tensor], Tensor], part: nn.Module | None = None, x: Tensor = SEQUENCES
) -> float:
    return Macs(x)(Computes(function, part).eval())


@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrent_layer_multiplies_its_two_matrices_at_every_step(kind: Any) -> None:
    layer = kind(FEATURES, UNITS, batch_first=True)
    assert macs(lambda rnn, x: rnn(x)[0], layer) == STEPS * KINDS[kind] * UNITS * (FEATURES + UNITS)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_directions_of_a_recurrent_layer_are_counted_each(kind: Any) -> None:
    layer = kind(FEATURES, UNITS, num_layers=2, bidirectional=True, bias=False)
    first, second = FEATURES + UNITS, 2 * UNITS + UNITS
    by_hand = STEPS * 2 * KINDS[kind] * UNITS * (first + second)
    assert macs(lambda rnn, x: rnn(x.transpose(0, 1))[0], layer) == by_hand


def test_a_projection_of_hidden_units_is_counted() -> None:
    layer = nn.LSTM(FEATURES, UNITS, proj_size=3, batch_first=True)
    by_hand = STEPS * (4 * UNITS * (FEATURES + 3) + 3 * UNITS)
    assert macs(lambda rnn, x: rnn(x)[0], layer) == by_hand


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_counted_at_every_call(kind: Any) -> None:
    def twice(cell: nn.Module, x: Tensor) -> Tensor:
        state = cell(x[:, 0])
        state = cell(x[:, 1], state)
        first: Tensor = state[0] if isinstance(state, tuple) else state
        return first

    cell: nn.Module = getattr(nn, f"{kind.__name__}Cell")(FEATURES, UNITS)
    assert macs(twice, cell) == 2 * KINDS[kind] * UNITS * (FEATURES + UNITS)
    assert uncounted(Computes(twice, cell), SEQUENCES) == ()


def test_packed_sequences_have_no_padding_to_count() -> None:
    def packed(rnn: nn.Module, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), 5)
        return rnn(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True))[0].data  # type: ignore[no-any-return]

    assert macs(packed, nn.GRU(FEATURES, UNITS, batch_first=True)) == 5 * 3 * UNITS * (FEATURES + UNITS)


@pytest.mark.parametrize(("groups", "masked"), [(1, False), (2, True)])
def test_a_deformable_convolution_is_a_convolution(groups: int, masked: bool) -> None:  # noqa: FBT001
    def deformed(layer: nn.Module, x: Tensor) -> Tensor:
        mask = torch.ones(len(x), 9, 8, 8) if masked else None
        return layer(x, torch.zeros(len(x), 18, 8, 8), mask)  # type: ignore[no-any-return]

    layer = DeformConv2d(4, 6, 3, padding=1, groups=groups)
    assert macs(deformed, layer, IMAGES) == 64 * 6 * (4 // groups) * 9


def test_a_bilinear_layer_has_one_multiply_add_for_each_weight() -> None:
    assert macs(lambda layer, x: layer(x, x), nn.Bilinear(FEATURES, FEATURES, 5)) == STEPS * 5 * FEATURES**2


PRODUCTS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "einsum of tokens": (lambda x: torch.einsum("bti,bsi->bts", x, x), 7 * 7 * 6),
    "einsum with an ellipsis": (lambda x: torch.einsum("...i,oi->...o", x, torch.ones(9, 6)), 7 * 9 * 6),
    "einsum of three": (
        lambda x: torch.einsum("bti,ij,bsj->bts", x, torch.ones(6, 5), torch.ones(len(x), 7, 5)), 7 * 6 * 5 + 7 * 7 * 5,
    ),
    "einsum without a sum": (lambda x: torch.einsum("bi,bj->bij", x[:, 0], x[:, 1]), 0),
    "matmul, broadcast": (lambda x: torch.ones(3, 1, 4, 5) @ torch.ones(1, 2, 5, 6) + x.sum(), 6 * 4 * 5 * 6),
    "matmul with a vector": (lambda x: x @ torch.ones(6), 7 * 6),
    "mv": (lambda x: torch.mv(x[0], torch.ones(6)), 7 * 6),
    "bmm": (lambda x: torch.bmm(x, x.transpose(1, 2)), 7 * 7 * 6),
    "baddbmm": (lambda x: torch.baddbmm(torch.zeros(1, 1, 1), x, x.transpose(1, 2)), 7 * 7 * 6),
    "addmm": (lambda x: torch.addmm(torch.zeros(1), x[0], x[0].T), 7 * 7 * 6),
    "addbmm": (lambda x: torch.addbmm(torch.zeros(7, 7), x, x.transpose(1, 2)), 7 * 7 * 6),
    "tensordot": (lambda x: torch.tensordot(x, torch.ones(6, 3), dims=1), 7 * 6 * 3),
    "inner": (lambda x: torch.inner(x, torch.ones(3, 6)), 7 * 6 * 3),
    "grouped queries": (
        lambda x: F.scaled_dot_product_attention(
            x.reshape(1, 7, 3, 2).transpose(1, 2), torch.ones(1, 1, 5, 2), torch.ones(1, 1, 5, 4), enable_gqa=True,
        ),
        3 * 7 * 5 * (2 + 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_products_are_counted_exactly(name: str) -> None:
    function, by_hand = PRODUCTS[name]
    assert macs(lambda _, x: function(x)) == by_hand
    assert uncounted(Computes(lambda _, x: function(x)), SEQUENCES) == ()


UNCOUNTED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "spectrum": (lambda x: torch.fft.rfft(x).abs(), "aten::fft_rfft"),
    "distances": (lambda x: torch.cdist(x, x), "aten::cdist"),
    "equations": (lambda x: torch.linalg.solve(torch.eye(7), x), "aten::linalg_solve"),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_an_operator_that_cannot_be_counted_is_named_with_its_layer(name: str) -> None:
    function, operator = UNCOUNTED[name]
    network = nn.Sequential(nn.Linear(FEATURES, FEATURES), Computes(lambda _, x: function(x).relu().mean(-1)))
    assert uncounted(network, SEQUENCES) == ((operator, "1"),)
    assert uncounted_words(network, SEQUENCES) == (f"multiply-adds leave out what cannot be counted: {operator} in '1'")
    assert count(network, SEQUENCES)[""] == STEPS * FEATURES**2


class Detector(nn.Module):
    """A convolution, a layer that no axis acts on, a product without a layer, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.deformed = DeformConv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deformed(self.conv(x), x.new_zeros(len(x), 18, 8, 8)).flatten(2)
        return self.head(x.transpose(1, 2) @ x).mean(1)  # type: ignore[no-any-return]


def test_inspection_shows_shares_of_the_whole_work() -> None:
    network = Detector().eval()
    counts, words = counted(network, IMAGES)
    table = inspection(study(), trace(network, IMAGES), counts).set_index("layer")
    assert words == []
    convolution, product, head = 64 * 4 * 4 * 9, 64 * 64 * 4, 64 * 64 * 2
    total = 2 * convolution + product + head
    assert table["macs_percent"].sum() == pytest.approx(100)
    assert table.loc["deformed", "macs_percent"] == pytest.approx(100 * convolution / total)
    assert table.loc["deformed", "PruneRatios"] == "no: no axis acts on DeformConv2d"
    assert table.loc["(matrix products outside of layers)", "macs_percent"] == pytest.approx(100 * product / total)
    assert percent_acted_on(table.reset_index(), "BitWidths") == pytest.approx(100 * (convolution + head) / total)


class Untraceable(nn.Module):
    """A network that torch.jit cannot trace: its output has no tensor type there."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._get_tracing_state() is not None:
            raise RuntimeError("not here")
        return self.head(x)  # type: ignore[no-any-return]


def test_a_network_that_cannot_be_counted_is_inspected_all_the_same() -> None:
    counts, words = counted(Untraceable(), SEQUENCES)
    table = inspection(study(), trace(Untraceable(), SEQUENCES), counts)
    assert "not here" in words[0]
    assert table["macs_percent"].tolist() == [100.0]
