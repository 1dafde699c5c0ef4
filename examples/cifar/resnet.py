"""The ResNet for CIFAR images and its checkpoints.

Three stages of 3x3 convolutions with 16, 32 and 64 channels (He, Zhang, Ren, Sun: Deep Residual Learning for Image
Recognition, 2015, arXiv 1512.03385, section 4.2, shortcut "option A"). The parameter names are those of the checkpoints
of https://github.com/akamaster/pytorch_resnet_cifar10 (Y. Idelbayev, 2018).
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = {"layer1": 16, "layer2": 32, "layer3": 64}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection; (N, C, H, W) -> (N, channels, H/stride, W/stride)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
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

    Args:
        depth: 6 n + 2 layers with n blocks in each of the three stages: 20, 32, 44, 56, 110.
        classes: number of classes.

    Raises:
        ValueError: ``depth`` is not 6 n + 2.
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1 (8, 14, 20, ...), got {depth}")
        blocks = depth // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels_in = 16
        for name, channels in STAGES.items():
            stride = 1 if channels == channels_in else 2
            first = BasicBlock(channels_in, channels, stride)
            self.add_module(name, nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1))))
            channels_in = channels
        self.linear = nn.Linear(channels_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for name in STAGES:
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


def load_checkpoint(path: Path) -> CifarResNet:
    """The network that a checkpoint file holds, of the depth that its own keys tell, in eval mode.

    Args:
        path: a state dict saved by ``torch.save``, alone or under "state_dict", names with or without the prefix
            "module." that ``DataParallel`` gives them.

    Raises:
        ValueError: the file is no checkpoint of a `CifarResNet`.
        OSError: it cannot be read.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is no file of tensors that torch.save wrote: {error}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {str(name).removeprefix("module."): value for name, value in state.items()}
    counts = {stage: sum(_is_first_weight(name, stage) for name in state) for stage in STAGES}
    if "linear.weight" not in state or len(set(counts.values())) != 1:
        raise ValueError(
            f"{path} is no checkpoint of a CIFAR ResNet: expected linear.weight and as many blocks in each stage, got "
            f"{counts} among {len(state)} entries"
        )
    blocks = counts["layer1"]
    net = CifarResNet(6 * blocks + 2, classes=len(state["linear.weight"]))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit a CIFAR ResNet of {6 * blocks + 2} layers: {error}") from error
    return net.eval()


def _is_first_weight(name: str, stage: str) -> bool:
    return name.startswith(f"{stage}.") and name.endswith(".conv1.weight")
