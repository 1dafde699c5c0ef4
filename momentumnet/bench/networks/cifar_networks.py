"""The networks of the benchmarks of trainings: CIFAR's ResNets and VGG, with batch normalisation and without, and ViTs.

They are part of the package, not of the benchmarks' or examples' folders, because the installed command trains them;
the examples import them from here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from momentumnet.bench.networks.language_models import head_count, transformer_layer

LENET = "lenet300"
VIT_WIDTH = 192
STAGES = {"layer1": 16, "layer2": 32, "layer3": 64}
WIDTH = STAGES["layer1"]
VGG_CHANNELS = (64, 128, 256, 512, 512)
# Convolutions in each of the five stages; the published names count two more linear layers than there are here.
VGG_STAGES = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
NAMES = (
    f"resnetN with N = 6 n + 2 (resnet8, resnet20, resnet56, resnet110, resnet1202, ...) and "
    f"{', '.join(f'vgg{depth}' for depth in VGG_STAGES)}, each also with _bn at its end; resnetNwC with C channels in "
    "the first stage, for 16 (resnet20w4_bn, ...); vitN with N blocks (vit6, vit12, vit24), or vitNxW with W features "
    f"instead of 192; and {LENET}"
)

_NAME = re.compile(r"(resnet|vgg)(\d+)(?:w(?P<width>[1-9]\d*))?(?P<norm>_bn)?")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection; (N, C, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, batch_norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=not batch_norm)
        self.bn1 = _normalisation(channels, batch_norm)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.bn2 = _normalisation(channels, batch_norm)
        self.stride = stride
        self.missing_channels = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return F.relu(branch + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Without parameters: every stride-th pixel, new channels zero, half of them on each side."""
        if self.stride == 1 and self.missing_channels == 0:
            return x
        before = self.missing_channels // 2
        padding = (0, 0, 0, 0, before, self.missing_channels - before)
        return F.pad(x[:, :, :: self.stride, :: self.stride], padding)


class CifarResNet(nn.Module):
    """A ResNet of 6 n + 2 layers for small images, (N, 3, H, W) -> (N, classes).

    Three stages of 3x3 convolutions with 16, 32 and 64 channels (He, Zhang, Ren, Sun: Deep Residual Learning for Image
    Recognition, 2015, arXiv 1512.03385, section 4.2, shortcut "option A"). The parameter names are those of the
    checkpoints of https://github.com/akamaster/pytorch_resnet_cifar10 (Y. Idelbayev, 2018).

    Args:
        depth: 6 n + 2 layers with n blocks in each of the three stages: 20, 32, 44, 56, 110, 1202.
        classes: number of classes.
        batch_norm: False leaves the normalisation out and gives the convolutions biases.
        width: channels of the first stage; the other two have two and four times as many.

    Raises:
        ValueError: ``depth`` is not 6 n + 2.
    """

    def __init__(self, depth: int = 20, classes: int = 10, *, batch_norm: bool = True, width: int = WIDTH) -> None:
        super().__init__()
        if not _is_resnet_depth(depth):
            raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
        blocks = depth // 6
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=not batch_norm)
        self.bn1 = _normalisation(width, batch_norm)
        channels_in = width
        for name, usual in STAGES.items():
            channels = usual * width // WIDTH
            stride = 1 if channels == channels_in else 2
            shapes = [(channels_in, stride), *[(channels, 1)] * (blocks - 1)]
            stage = [BasicBlock(entering, channels, stride, batch_norm=batch_norm) for entering, stride in shapes]
            self.add_module(name, nn.Sequential(*stage))
            channels_in = channels
        self.linear = nn.Linear(channels_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for name in STAGES:
            x = self.get_submodule(name)(x)
        output: Tensor = self.linear(x.mean((2, 3)))
        return output


class CifarVGG(nn.Module):
    """A VGG for small images with one linear classifier, (N, 3, H, W) -> (N, classes).

    Five stages of 3x3 convolutions, each with a 2x2 max-pooling at its end (Simonyan, Zisserman: Very Deep
    Convolutional Networks for Large-Scale Image Recognition, 2015, arXiv 1409.1556, table 1). In the place of the three
    linear layers for ImageNet there is one, as is usual for CIFAR: VGG-N has N - 3 convolutions. Images of less than
    32 x 32 pixels pass the later poolings unchanged once a single pixel is left.

    Args:
        depth: 8, 11, 13, 16 or 19.
        classes: number of classes.
        batch_norm: True puts batch normalisation between convolution and ReLU, and leaves out the convolution's bias.

    Raises:
        ValueError: there is no VGG of this depth.
    """

    def __init__(self, depth: int = 19, classes: int = 10, *, batch_norm: bool = False) -> None:
        super().__init__()
        if depth not in VGG_STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, VGG_STAGES))}, got {depth}")
        layers: list[nn.Module] = []
        channels_in = 3
        for count, channels in zip(VGG_STAGES[depth], VGG_CHANNELS, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(channels_in, channels, 3, padding=1, bias=not batch_norm))
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers.append(nn.ReLU())
                channels_in = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.features(images).mean((2, 3)))
        return output


class VisionTransformer(nn.Module):
    """A pre-norm transformer on the patches of small images, (N, 3, side, side) -> (N, classes).

    Dosovitskiy et al.: An Image is Worth 16x16 Words, ICLR 2021 (arXiv 2010.11929), section 3.1, with patches of 4 x 4
    pixels (2 x 2 where images are smaller than CIFAR's), the mean of all tokens in the place of a class token, and no
    dropout.

    Args:
        depth: Number of blocks.
        classes: number of classes.
        width: Features of a token; 64 of them, or all, make a head.
        side: Pixels of an image's side.

    Raises:
        ValueError: patches do not fill the image, or ``width`` is no whole number of heads.
    """

    def __init__(self, depth: int = 12, classes: int = 10, *, width: int = VIT_WIDTH, side: int = 32) -> None:
        super().__init__()
        patch = 4 if side >= 32 else 2
        if side % patch:
            raise ValueError(f"side must be a multiple of the patches' {patch} pixels, got {side}")
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.ModuleList(transformer_layer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        output: Tensor = self.linear(self.norm(x).mean(1))
        return output


class LeNet300(nn.Module):
    """LeNet-300-100: two hidden layers on the grey values of (N, 3, side, side) images -> (N, classes).

    LeCun, Bottou, Bengio, Haffner: Gradient-Based Learning Applied to Document Recognition, 1998, with ReLUs as in
    Frankle, Carbin: The Lottery Ticket Hypothesis, ICLR 2019, figure 2.

    Args:
        side: Pixels of an image's side.
        classes: number of classes.
    """

    def __init__(self, side: int = 28, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(side * side, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean(1).flatten(1)
        output: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return output


class NetworkName(NamedTuple):
    """What the name of a network says.

    Attributes:
        family: "resnet", "vgg", "vit" or "lenet".
        depth: The number behind it.
        batch_norm: Whether it has batch normalisation.
        width: Features of a token, or channels in a ResNet's first stage; None for the others.
    """

    family: str
    depth: int
    batch_norm: bool = False
    width: int | None = None


def parse(name: str) -> NetworkName:
    """What a name such as ``resnet110``, ``resnet20_bn``, ``vgg19`` or ``vit12`` says.

    Raises:
        ValueError: no network has this name; the message tells those that there are.
    """
    if name == LENET:
        return NetworkName("lenet", 300)
    if transformer := parse_transformer(name, "vit", VIT_WIDTH):
        return transformer
    found = _NAME.fullmatch(name)
    if found is None or (found["width"] and found[1] == "vgg"):
        raise ValueError(f"{name!r} is not a network of this benchmark; there are {NAMES}")
    family, depth = found[1], int(found[2])
    if not (_is_resnet_depth(depth) if family == "resnet" else depth in VGG_STAGES):
        raise ValueError(f"there is no {family} of depth {depth}; there are {NAMES}")
    width = int(found["width"] or WIDTH) if family == "resnet" else None
    return NetworkName(family, depth, found["norm"] is not None, width)


def parse_transformer(name: str, family: str, width: int) -> NetworkName | None:
    """What a name like ``vit12`` or ``vit12x64`` says, ``width`` being what the former has; None for another name.

    Raises:
        ValueError: its width is no whole number of heads.
    """
    found = re.fullmatch(rf"{family}([1-9]\d*)(?:x([1-9]\d*))?", name)
    if found is None:
        return None
    width = int(found[2] or width)
    head_count(width)
    return NetworkName(family, int(found[1]), width=width)


def build(name: str, classes: int = 10, *, side: int = 32) -> nn.Module:
    """The network of this name, with PyTorch's own random weights, for images of ``side`` pixels.

    Raises:
        ValueError: as `parse`.
    """
    family, depth, batch_norm, width = parse(name)
    if family == "lenet":
        return LeNet300(side, classes)
    if width is None:
        return CifarVGG(depth, classes, batch_norm=batch_norm)
    if family == "resnet":
        return CifarResNet(depth, classes, batch_norm=batch_norm, width=width)
    return VisionTransformer(depth, classes, width=width, side=side)


def _is_resnet_depth(depth: int) -> bool:
    return depth >= 8 and depth % 6 == 2


def _normalisation(channels: int, batch_norm: bool) -> nn.Module:
    # Without parameters, so that the state dict has no entry of this name.
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
