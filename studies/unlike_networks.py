"""Twenty networks of unlike kinds, for which nothing of ours was fitted; `studies.random_files` exports plans for them.

Their weights are random; statistics of norms are those of random inputs, so that signals pass all layers. Some have
fewer layers than published, which keeps exports short, but every kind of layer and of joining is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from studies.recordings import MELS
from studies.speech_digits import Crnn

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES, SIZE, INPUTS = 10, 64, 32
PASSES = 20  # in training mode, over which norms count their statistics


class UNet(nn.Module):
    """Two levels down and up again, joined by concatenation (Ronneberger et al. 2015, arXiv:1505.04597, §2)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = _block(3, width), _block(width, 2 * width)
        self.lowest = _block(2 * width, 4 * width)
        self.up, self.up_again = (nn.ConvTranspose2d(2 * n * width, n * width, 2, 2) for n in (2, 1))
        self.joined, self.last = _block(4 * width, 2 * width), _block(2 * width, width)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps (B, 2, H, W) of images (B, 3, H, W)."""
        first = self.first(x)
        second = self.second(nn.functional.max_pool2d(first, 2))
        lowest = self.lowest(nn.functional.max_pool2d(second, 2))
        second = self.joined(torch.cat([second, self.up(lowest)], 1))
        return self.head(self.last(torch.cat([first, self.up_again(second)], 1)))  # type: ignore[no-any-return]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(outputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm, nn.ReLU())


class Answers(nn.Module):
    """A network that returns one named part of its answers."""

    def __init__(self, network: nn.Module, part: str) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, x: Tensor) -> Tensor:
        """Return the part."""
        return self.network(x)[self.part]  # type: ignore[no-any-return]


def _hugging_face(kind: str, **sizes: Any) -> nn.Module:  # noqa: ANN401
    import transformers  # noqa: PLC0415 - of the development extra, and slow

    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **sizes)
    task = "ForImageClassification" if kind == "ViT" else "ForSequenceClassification"
    return Answers(getattr(transformers, f"{kind}{task}")(config), "logits")


def _vit() -> nn.Module:
    network: nn.Module = models.VisionTransformer(SIZE, 16, 3, 4, 64, 128, num_classes=CLASSES)
    nn.init.normal_(network.get_parameter("heads.head.weight"), std=0.1)  # it starts with zeros
    return network


def _convnext() -> nn.Module:
    blocks = [CNBlockConfig(24, 48, 1), CNBlockConfig(48, 96, 1), CNBlockConfig(96, None, 2)]
    network: nn.Module = models.ConvNeXt(blocks, num_classes=CLASSES)
    return network


def _swin() -> nn.Module:
    network: nn.Module = models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "VGG-11": lambda: nn.Sequential(*models.vgg11_bn().features[:22], nn.Flatten(), nn.Linear(8192, CLASSES)),
    "ResNet": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES),
    "ResNeXt": lambda: models.ResNet(
        models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, groups=32, width_per_group=4
    ),
    "U-Net": UNet,
    "DenseNet": lambda: models.DenseNet(8, (3, 3, 3), 16, num_classes=CLASSES),
    "SqueezeNet": lambda: models.squeezenet1_1(num_classes=CLASSES),
    "GoogLeNet": lambda: models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False),
    "MobileNetV2": lambda: models.mobilenet_v2(num_classes=CLASSES),
    "MobileNetV3": lambda: models.mobilenet_v3_small(num_classes=CLASSES),
    "MNASNet": lambda: models.mnasnet0_5(num_classes=CLASSES),
    "ShuffleNetV2": lambda: models.shufflenet_v2_x0_5(num_classes=CLASSES),
    "EfficientNet": lambda: models.efficientnet_b0(num_classes=CLASSES),
    "RegNet": lambda: models.regnet_y_400mf(num_classes=CLASSES),
    "LR-ASPP": lambda: Answers(
        models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=2), "out"
    ),
    "ConvNeXt": _convnext,
    "ViT": _vit,
    "Swin": _swin,
    "Hugging Face ViT": lambda: _hugging_face(
        "ViT", hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=SIZE
    ),
    "CRNN": Crnn,
    "Hugging Face BERT": lambda: _hugging_face(
        "Bert",
        vocab_size=200,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
    ),
}


def network_and_inputs(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network in evaluation mode, with seed 0, and a batch of its inputs."""
    torch.manual_seed(0)
    network, inputs = NETWORKS[name](), torch.randn(INPUTS, 3, SIZE, SIZE)
    if name == "CRNN":
        inputs = torch.randn(INPUTS, 1, 49, MELS)
    if name == "Hugging Face BERT":
        inputs = torch.randint(200, (INPUTS, 16))
    with torch.no_grad():
        for vector in (one for one in network.parameters() if one.dim() == 1):
            vector.add_(0.1 * torch.randn_like(vector))  # files may store equal biases once
        network.train()
        for _ in range(PASSES if any(isinstance(x, nn.BatchNorm2d) for x in network.modules()) else 0):
            network(torch.randn_like(inputs))
    return network.eval(), inputs
