"""The kinds of work from which costs are predicted that are only measured on whole networks."""

from __future__ import annotations

from torch import nn

from search.costs.coarse_work import coarse_work
from spaces import Distill, Factorize, Plan, Quantize
from spaces.network.layers import FLOAT_BITS
from spaces.plan import architectures_of
from tests.small_study import context, study


def test_work_of_layers_with_unpacked_weights_is_counted_separately() -> None:
    shared = context(study(5))
    pairs = (("first", 4, FLOAT_BITS), ("second", 4, 8), ("head", 8, 8))
    plan = Plan((Quantize(pairs),), Distill())
    counted = coarse_work(architectures_of(shared.cost_model.frame, [plan]).parts())[0]
    first, second = 8 * 9 * 64, 8 * 8 * 9 * 16
    integer, floating = (second, 0), (first, 0)  # of dense convolutions, of grouped ones
    assert counted[10:15].tolist() == [0, *integer, *floating]
    assert counted[-6:-2].tolist() == [3, 2, 1, 1], (
        "layers; with quantized inputs; unpacked integer; unpacked floating-point"
    )


def test_input_channels_are_padded_in_integer_layers_only() -> None:
    shared = context(study(5))
    plans = [
        Plan((Quantize(pairs),), Distill()) for pairs in ((("first", 8, 8),), (("second", 8, 8),), (("head", 8, 8),))
    ]
    counted = coarse_work(architectures_of(shared.cost_model.frame, [None, *plans]).parts())
    first, second = 8 * 9 * 64, 8 * 8 * 9 * 16
    assert counted[:, 8].tolist() == [0, 8 * first, second, 0], "the first has one input channel, the second eight"
    split = Plan((Factorize((("second", 0.25),)), Quantize((("second", 8, 8),))), Distill())
    model = split.apply(shared.subject.model, shared.subject.example)
    layers = [module for module in model.get_submodule("second").modules() if isinstance(module, nn.Conv2d)]
    padding = {layer: -(-layer.in_channels // 8) * 8 / layer.in_channels for layer in layers}
    expected = sum(16 * layer.weight.numel() * padding[layer] for layer in layers)
    assert [layer.in_channels for layer in layers] == [8, 2]
    assert coarse_work(architectures_of(shared.cost_model.frame, [split]).parts())[0, 8] == expected


def test_work_counts_layers_and_pads_channels_to_blocks() -> None:
    shared = context(study(5))
    counted = coarse_work(architectures_of(shared.cost_model.frame, [None]).parts())
    assert counted.shape == (1, 24)
    first, second, head = 8 * 9 * 64, 8 * 8 * 9 * 16, 32 * 4
    weights = 32 * (8 * 9 + 8 * 8 * 9 + head)
    written = 8 * 64 + 8 * 16 + 4
    assert counted[0].tolist() == [
        *(first + second, 0, 0, 2 * head), *(2 * (first + second), 0, 0, 4 * head), 0,
        first + second + head, *[0] * 5, weights, written, 0, 3, 0, 0, 0, 0, 1,
    ]  # fmt: skip
