"""Unfused attention has the same outputs as fused attention, and every axis can act on its layers."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from optuna.trial import FixedTrial
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from objectives import Macs
from objectives.runtimes import OnnxRuntime
from spaces import (
    BitWidths,
    Magnitude,
    PruneRatios,
    Ranks,
    Space,
    Taylor,
    Temperatures,
    deployed,
    trace,
    unfuse_attention,
    with_plain_layers,
)
from spaces.network.unfused_attention import Attention, WindowAttention
from spaces.testing.networks import N, scrambled
from tests.test_groups import Custom
from tests.test_propagation import followed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WIDTH, HEADS, TOKENS = 16, 2, 6
SPACE = Space(
    steps=(PruneRatios(importance=Magnitude(), refit=False), Ranks(), BitWidths(weights=(4, 8), activations=(8,))),
    recovery=Temperatures(),
)


def biased(net: N) -> N:
    """Set every bias and bare vector to random numbers, since torch sets those of attention to zero."""
    for parameter in net.parameters():
        if parameter.dim() < 2:
            parameter.data.normal_(0, 0.3)
    return scrambled(net)


def attention(**settings: Any) -> Custom:
    """Return a network with one self-attention module."""
    module = nn.MultiheadAttention(WIDTH, HEADS, **settings)
    queries, width = nn.Linear(4, WIDTH), (module.kdim, module.vdim)

    def way(net: Custom, x: Tensor) -> Tensor:
        x = net.stem(x)
        x = x if net.mha.batch_first else x.transpose(0, 1)
        mixed: Tensor = net.mha(x, net.key(x), net.value(x), need_weights=False)[0]
        out: Tensor = net.last(mixed if net.mha.batch_first else mixed.transpose(0, 1))
        return out

    own = dict(
        zip(("key", "value"), (nn.Identity() if w == WIDTH else nn.Linear(WIDTH, w) for w in width), strict=True)
    )
    return biased(Custom(way, stem=queries, mha=module, last=nn.Linear(WIDTH, 3), **own))


class ViT(nn.Module):
    """A vision transformer: patches, position embeddings, torch's encoder layers, a head."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 4, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, dropout=0.0, batch_first=True, **settings)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.place
        out: Tensor = self.head(self.encoder(tokens).mean(1))
        return out


def swin(version: int, depths: tuple[int, ...] = (2, 2)) -> SwinTransformer:
    """Return a Swin with windows of 4 x 4, every other one shifted by 2, on padded maps of 10 x 10 and then 5 x 5."""
    second = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2} if version == 2 else {}
    net = SwinTransformer(
        [2, 2], 8, list(depths), [2] * len(depths), [4, 4], stochastic_depth_prob=0.0, num_classes=5, **second
    )
    for name, parameter in net.named_parameters():
        if "table" in name:
            parameter.data.normal_()
    return biased(net)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (partial(attention, batch_first=True), (TOKENS, 4)),
    "tokens first": (attention, (TOKENS, 4)),
    "no bias": (partial(attention, bias=False), (TOKENS, 4)),
    "other widths": (partial(attention, kdim=10, vdim=12), (TOKENS, 4)),
    "own key and value": (partial(attention, add_bias_kv=True), (TOKENS, 4)),
    "zero key and value": (partial(attention, add_zero_attn=True, batch_first=True), (TOKENS, 4)),
    "own and zero": (partial(attention, add_bias_kv=True, add_zero_attn=True, bias=False), (TOKENS, 4)),
    "encoder": (lambda: biased(ViT()), (3, 8, 8)),
    "encoder, norm first": (lambda: biased(ViT(norm_first=True)), (3, 8, 8)),
    "swin": (partial(swin, 1), (3, 20, 20)),
    "swin v2": (partial(swin, 2), (3, 20, 20)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[request.param]
    return make(), torch.randn(3, *shape)


def close(ours: Tensor | None, theirs: Tensor | None) -> None:
    """Compare with a tolerance relative to the largest number, and a small absolute one for rounded zeros."""
    assert ours is not None
    assert theirs is not None
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.detach().abs().max()) + 1e-6, rtol=0)


def test_outputs_are_the_same_in_evaluation_and_in_training(case: tuple[nn.Module, Tensor]) -> None:
    net, x = case
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    new = unfuse_attention(net, x)
    assert new is not net
    assert not new.training
    for ours, theirs in ((new, net), (new.train(), net.train())):
        with torch.no_grad():
            close(ours(x), theirs(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_gradients_are_the_same(case: tuple[nn.Module, Tensor]) -> None:
    net, x = case
    new = unfuse_attention(net.train(), x)
    assert new.training
    for model in (new, net):
        model(x).square().sum().backward()
    expected: dict[str, Tensor | None] = {}
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        if "in_proj_" in name or "qkv." in name:
            where, leaf = name.replace("qkv.", "in_proj_").split("in_proj_")
            expected |= {f"{where}{x}_proj.{leaf}": g for x, g in zip("qkv", parameter.grad.chunk(3), strict=True)}
        else:
            expected[name.replace("_proj_weight", "_proj.weight")] = parameter.grad
    for name, parameter in new.named_parameters():
        close(parameter.grad, expected[name])


def test_multiply_adds_are_the_same_and_more_of_them_belong_to_layers(case: tuple[nn.Module, Tensor]) -> None:
    net, x = case
    new = unfuse_attention(net, x)
    assert Macs(x)(new) == Macs(x)(net)
    in_layers = [sum(layer.macs for layer in trace(model, x).layers) for model in (net, new)]
    assert in_layers[0] < in_layers[1] <= Macs(x)(new)


def test_every_layer_but_the_last_can_be_pruned_factorized_and_quantized(case: tuple[nn.Module, Tensor]) -> None:
    net, x = case
    new = unfuse_attention(net, x)
    anatomy = trace(new, x)
    texts = [axis.acts_on(anatomy) for axis in SPACE.steps]
    last = anatomy.layers[-1].name
    refused = {name for words in texts for name, word in words.items() if word.startswith("no: ") and name != last}
    # the first has one output for each head; the second is added to position embeddings
    assert all("cpb_mlp.2" in name or name == "patch" for name in refused)
    plan = SPACE.suggest(FixedTrial(SPACE.uniform(anatomy, (0.6,) * 3)), anatomy)
    smaller = plan.apply(new, x)
    assert Macs(x)(deployed(smaller, x)) < 0.7 * Macs(x)(new)
    smaller.train()(x).sum().backward()
    assert copy.deepcopy(smaller).eval()(x).shape == new(x).shape


@pytest.mark.parametrize("make", [lambda: biased(ViT()), lambda: swin(2, (2,))], ids=["encoder", "swin v2"])
def test_the_exported_file_has_the_same_outputs(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8) if isinstance(net := make(), ViT) else torch.randn(3, 3, 20, 20)
    new = deployed(unfuse_attention(net, x), x)
    OnnxRuntime().export(new, x[:1], tmp_path / "model.onnx")
    with torch.no_grad():
        torch.testing.assert_close(OnnxRuntime().load(tmp_path / "model.onnx")(x), new(x), atol=1e-4, rtol=1e-4)


MASKS: dict[str, Tensor | None] = {
    "none": None,
    "of booleans": torch.ones(5, TOKENS).triu(2).bool(),
    "of numbers": torch.randn(5, TOKENS),
    "a head": torch.arange(3 * HEADS * 5 * TOKENS).reshape(3 * HEADS, 5, TOKENS) % 7
    > 4,  # every query keeps some tokens
}
PADDINGS = {"all": None, "some": torch.arange(TOKENS) >= torch.tensor([[6], [4], [5]])}


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("first", [False, True], ids=["tokens first", "batch first"])
@pytest.mark.parametrize("weights", [None, True, False], ids=["no weights", "mean weights", "weights a head"])
@pytest.mark.parametrize("extra", [False, True], ids=["plain", "with own and zero keys"])
def test_masks_and_attention_weights_equal_those_of_torch(
    *, extra: bool, weights: bool | None, first: bool, training: bool
) -> None:
    torch.manual_seed(0)
    net = attention(batch_first=first, add_bias_kv=extra, add_zero_attn=extra).train(training)
    new = unfuse_attention(net, torch.randn(2, TOKENS, 4))
    queries, keys, values = (torch.randn(3, n, WIDTH) for n in (5, TOKENS, TOKENS))
    if not first:
        queries, keys, values = (x.transpose(0, 1) for x in (queries, keys, values))
    settings = {"need_weights": weights is not None, "average_attn_weights": bool(weights)}
    for (kind, mask), padding in itertools.product(MASKS.items(), PADDINGS.values()):
        if padding is not None and kind == "of numbers":
            continue  # torch requires both to have one type
        arguments = {"attn_mask": mask, "key_padding_mask": padding, **settings}
        ours, theirs = (model.get_submodule("mha")(queries, keys, values, **arguments) for model in (new, net))
        close(ours[0], theirs[0])
        if weights is None:
            assert ours[1] is None
        else:
            close(ours[1], theirs[1])


def test_one_sequence_without_a_batch_is_accepted() -> None:
    net = attention(batch_first=True)
    new = unfuse_attention(net, torch.randn(2, TOKENS, 4))
    x, padding = torch.randn(TOKENS, WIDTH), torch.arange(TOKENS) > 3
    ours, theirs = (model.get_submodule("mha")(x, x, x, key_padding_mask=padding) for model in (new, net))
    close(ours[0], theirs[0])
    close(ours[1], theirs[1])


def test_the_causal_hint_needs_a_mask() -> None:
    new = unfuse_attention(attention(batch_first=True), torch.randn(2, TOKENS, 4)).get_submodule("mha")
    x, mask = torch.randn(1, TOKENS, WIDTH), nn.Transformer.generate_square_subsequent_mask(TOKENS)
    close(new(x, x, x, attn_mask=mask, is_causal=True)[0], new(x, x, x, attn_mask=mask)[0])
    with pytest.raises(ValueError, match=r"is_causal describes attn_mask, but attn_mask is missing; pass both"):
        new(x, x, x, is_causal=True)


def test_dropout_is_applied_in_training_only() -> None:
    new = unfuse_attention(attention(batch_first=True, dropout=0.5), torch.randn(2, TOKENS, 4))
    x = torch.randn(2, TOKENS, 4)
    assert torch.equal(new(x), new(x))
    new.train()
    assert not torch.equal(new(x), new(x))


def test_a_decoder_with_cross_attention_is_unfused_completely() -> None:
    class Translate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Transformer(WIDTH, HEADS, 1, 1, 24, dropout=0.0, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            causal = nn.Transformer.generate_square_subsequent_mask(3)
            out: Tensor = self.body(x, x[:, :3], tgt_mask=causal, tgt_is_causal=True)
            return out

    torch.manual_seed(0)
    net, x = biased(Translate()), torch.randn(2, TOKENS, WIDTH)
    new = unfuse_attention(net, x)
    assert sum(isinstance(module, Attention) for module in new.modules()) == 3
    for ours, theirs in ((new, net), (new.train(), net.train())):
        with torch.no_grad():
            close(ours(x), theirs(x))
    assert not any(kind == "MultiheadAttention" for _, kind in trace(new, x).others)


def test_an_encoder_and_a_decoder_are_cut_with_the_streams_that_they_read() -> None:
    def way(net: Custom, x: Tensor) -> object:
        return net.last(net.body(net.first(x), net.second(x[:, :3])))

    torch.manual_seed(0)
    ends = {"first": nn.Linear(4, WIDTH), "second": nn.Linear(4, WIDTH), "last": nn.Linear(WIDTH, 3)}
    torch_net = biased(Custom(way, body=nn.Transformer(WIDTH, HEADS, 1, 1, 24, dropout=0.0, batch_first=True), **ends))
    x = torch.randn(2, TOKENS, 4)
    plain: Any = with_plain_layers(torch_net, x)
    with torch.no_grad():
        close(plain(x), torch_net(x))
    assert isinstance(plain.body, nn.Transformer)
    anatomy = followed(way, (TOKENS, 4), body=plain.body, **ends)  # compares networks whose groups are cut
    assert {group.name: group.units for group in anatomy.groups if group.units == WIDTH} == {
        "first": WIDTH,
        "second": WIDTH,
    }
    assert {layer.name for layer in anatomy.layers} - {name for g in anatomy.groups for name in g.producers} == {"last"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_skips_padding_with_nested_tensors_is_unfused() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            valid = x[..., 0] != 0
            out: Tensor = self.encoder(x, src_key_padding_mask=~valid) * valid[..., None]
            return out

    torch.manual_seed(0)
    net, x = biased(Padded()), torch.randn(3, TOKENS, WIDTH) * ~PADDINGS["some"][..., None]  # type: ignore[index]
    new = unfuse_attention(net, x)
    assert new is not net
    with torch.no_grad():
        close(new(x), net(x))
    assert {"encoder.layers.1.self_attn.q_proj", "encoder.layers.1.linear2"} <= {y.name for y in trace(new, x).layers}


def test_frozen_weights_stay_frozen() -> None:
    net = attention()
    net.mha.in_proj_weight.requires_grad_(requires_grad=False)
    with torch.no_grad():
        mha: Any = unfuse_attention(net, torch.randn(2, TOKENS, 4)).get_submodule("mha")
    assert [p.requires_grad for p in (mha.q_proj.weight, mha.v_proj.weight, mha.v_proj.bias)] == [False, False, True]


def test_a_network_without_fused_attention_is_returned_itself() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    assert unfuse_attention(net, torch.randn(2, 4)) is net


def test_a_network_that_is_one_attention_module_is_unfused() -> None:
    window = swin(1).get_submodule("features.1.1.attn")
    x = torch.randn(2, 9, 7, 8)
    new = unfuse_attention(window, x)
    assert isinstance(new, WindowAttention)
    close(new(x), window(x))


def test_a_module_with_two_names_remains_one_module() -> None:
    net = attention(batch_first=True)
    net.again = net.mha
    new: Any = unfuse_attention(net, torch.randn(2, TOKENS, 4))
    assert isinstance(new.mha, Attention)
    assert new.again is new.mha


class CustomAttention(nn.MultiheadAttention):
    """A user's class, whose forward may differ."""


def shared(net: Custom) -> None:
    net.other = nn.Linear(WIDTH, WIDTH)
    net.other.weight = net.mha.out_proj.weight


def hooked(net: Custom) -> None:
    net.mha.register_forward_hook(lambda *_: None)


def derived(net: Custom) -> None:
    net.mha = CustomAttention(WIDTH, HEADS).eval()


@pytest.mark.parametrize("change", [shared, hooked, derived])
def test_shared_hooked_and_derived_attention_is_kept_and_listed(change: Callable[[Custom], None]) -> None:
    net = attention()
    change(net)
    x = torch.randn(2, TOKENS, 4)
    assert unfuse_attention(net, x) is net
    assert ("mha", type(net.mha).__name__) in trace(net, x).others


def test_only_the_module_whose_weights_are_read_from_outside_is_kept() -> None:
    net = attention(batch_first=True)
    plain = net.way
    net.aside = nn.MultiheadAttention(WIDTH, HEADS).eval()
    net.way = lambda net, x: plain(net, x) + net.aside.in_proj_weight.mean()
    new: Any = unfuse_attention(net, torch.randn(2, TOKENS, 4))
    assert isinstance(new.mha, Attention)
    assert type(new.aside) is nn.MultiheadAttention


def test_a_network_that_fails_on_the_example_is_returned_itself() -> None:
    net = attention()
    assert unfuse_attention(net, torch.randn(2, TOKENS, 5)) is net


def test_every_criterion_orders_queries_and_keys() -> None:
    x = torch.randn(4, TOKENS, 4)
    net = attention(batch_first=True)
    group = trace(unfuse_attention(net, x), x).group("mha.q_proj")
    assert group.producers == ("mha.q_proj", "mha.k_proj")
    assert group.consumers == ()
    assert sorted(Taylor().order(unfuse_attention(net, x), x, group)) == list(range(WIDTH // HEADS))
