"""Networks whose channels and blocks can go, with the groups written down by hand, and decoys whose cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from momentumnet.bench.networks.cifar_networks import CifarResNet

Layers = tuple[str, ...]


def lenet_mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 5))


def conv_net() -> nn.Module:
    """Channel c of the second convolution owns four columns of the linear layer; the norms are in odd places."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular"),
        nn.PReLU(6),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 9, 3, padding=1),
        nn.InstanceNorm2d(9, affine=True),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(36, 10),
        nn.BatchNorm1d(10),
        nn.ReLU(inplace=True),
        nn.Dropout(0.0),
        nn.Linear(10, 5, bias=False),
    )


def bottleneck_net() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return nn.Sequential(stem, Bottleneck(16, 4), Bottleneck(16, 4), Bottleneck(16, 4), head)


class PreNorm(nn.Module):
    """A pre-norm transformer encoder over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 10, dropout=0.0, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(images.transpose(1, 2).flatten(2)).mean(1))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)): the channels of two layers can only go together."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(48, 14), nn.Linear(48, 14, bias=False), nn.Linear(14, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Reused(nn.Module):
    """One MLP called three times, with a norm in between that it does not share."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(48, 7), nn.Linear(7, 48), nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for _ in range(3):
            x = x + self.fc2(F.relu(self.fc1(x)))
        return self.head(x)


def _basic(stages: dict[str, int]) -> list[Layers]:
    blocks = [f"{stage}.{block}" for stage, count in stages.items() for block in range(count)]
    return [(f"{block}.conv1", f"{block}.bn1", f"{block}.conv2") for block in blocks]


# What is written here: producers joined by +, normalisations, consumers.
NETWORKS = {
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=5),
        _basic({"layer1": 2, "layer2": 2, "layer3": 2, "layer4": 2}),
    ),
    "resnet20": (lambda: CifarResNet(20, 5), _basic({"layer1": 3, "layer2": 3, "layer3": 3})),
    "bottleneck": (
        bottleneck_net,
        [(f"{b}.conv{i}", f"{b}.bn{i}", f"{b}.conv{i + 1}") for b in (1, 2, 3) for i in (1, 2)],
    ),
    "lenet_mlp": (lenet_mlp, [("1", "3"), ("3", "5")]),
    "conv_net": (conv_net, [("0", "1", "3"), ("3", "4", "7"), ("7", "8", "11")]),
    "pre_norm": (PreNorm, [(f"encoder.layers.{i}.linear1", f"encoder.layers.{i}.linear2") for i in range(2)]),
    "gated_mlp": (GatedMLP, [("gate+up", "down")]),
    "reused": (Reused, [("fc1", "fc2")]),
}


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().to(dtype)  # type: ignore[operator]


def images(dtype: torch.dtype = torch.float64, *, seed: int = 0, size: int = 6) -> Tensor:
    return torch.randn(size, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class LowRank(nn.Linear):
    """A linear layer with an addition of rank 2, whose tensors are not those of any linear layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.zeros(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a.T @ self.b.T


class Decoy(nn.Module):
    """conv1, something in between, conv2; the channels of conv1 cannot go."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        if kind == "grouped":
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        elif kind == "depthwise":
            self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        elif kind == "concatenated":
            self.conv2 = nn.Conv2d(11, 8, 3, padding=1)
        elif kind == "tied":
            self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
            self.conv3.weight = self.conv2.weight
        elif kind == "weight norm":
            self.conv1 = nn.utils.parametrizations.weight_norm(self.conv1)
        elif kind == "weight norm behind":
            self.conv2 = nn.utils.parametrizations.weight_norm(self.conv2)
        elif kind == "low-rank addition":
            self.conv2 = LowRank(128, 4)
        self.norm = {
            "layer norm": nn.LayerNorm([8, 4, 4]),
            "group norm": nn.GroupNorm(4, 8),
            "norm without affine": nn.BatchNorm2d(8, affine=False),
        }.get(kind, nn.Identity())
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv1(x))
        if self.kind == "sigmoid":
            y = y.sigmoid()
        elif self.kind == "bias that is zero at first":
            y = F.relu(y + self.bias)
        elif self.kind == "softmax":
            y = y.softmax(1)
        elif self.kind == "mean over channels":
            y = y - y.mean(1, keepdim=True)
        elif self.kind == "size of its own":
            y = y.view(-1, 8, 16).view(x.shape[0], 8, 4, 4)
        elif self.kind == "heads":
            y = y.view(x.shape[0], 2, -1, 4, 4) * torch.tensor([1.0, 2.0], dtype=x.dtype).view(1, 2, 1, 1, 1)
            y = y.flatten(1, 2)
        elif self.kind == "every other":
            y = y * (1 + torch.arange(y.shape[1]) % 2).to(y).view(-1, 1, 1)
        elif self.kind == "number of channels":
            y = y / y.shape[1]
        elif self.kind == "low-rank addition":
            y = y.flatten(1)
        elif self.kind == "concatenated":
            return self.conv2(torch.cat([x, y], 1))
        elif self.kind == "added to the output":
            return y + self.conv2(F.relu(y))
        elif self.kind == "functional":
            return F.conv2d(F.relu(y), self.conv2.weight, self.conv2.bias, padding=1)
        elif self.kind == "tied":
            return self.conv3(F.relu(self.conv2(F.relu(y))))
        elif self.kind == "two outputs":
            return torch.stack([y, self.conv2(y)])
        return self.conv2(y)


# What the error says of conv1.
DECOYS = {
    "grouped": r"conv2 \(Conv2d\) takes its channels, and cannot",
    "depthwise": r"conv2 \(Conv2d\) takes its channels, and cannot",
    "concatenated": r"conv2 \(Conv2d\) takes other channels beside",
    "added to the output": "reach the output",
    "two outputs": "reach the output",
    "tied": r"conv2 \(Conv2d\) shares a parameter",
    "weight norm": "its weight is computed",
    "weight norm behind": r"the weight of conv2 \(.*\) is computed",
    "low-rank addition": "RuntimeError",
    "layer norm": r"norm \(LayerNorm\) takes its channels",
    "group norm": r"norm \(GroupNorm\) takes its channels",
    "norm without affine": "does not read zeros",
    "sigmoid": "does not read zeros",
    "bias that is zero at first": "does not read zeros",
    "softmax": "mixed before conv2|does not read zeros",
    "mean over channels": "mixed before conv2",
    "size of its own": "RuntimeError",
    "heads": "outputs differ",
    "every other": "outputs differ",
    "number of channels": "outputs differ",
    "functional": "reach the output",
}
