"""The networks that learned initialisations run over, with batches for them; all small and seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

import momentumnet as mn
from tests.models import Chain, DepthDropBlock, ResidualMLP

CLASSES = 4
Batches = list[tuple[Any, Tensor]]


class Spectral(nn.Module):
    """A matrix of complex numbers, or of the same pairs of real ones, and a layer behind it."""

    def __init__(self, *, paired: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        pairs = torch.randn(5, 6, 2, generator=generator, dtype=torch.float64)
        self.weight = nn.Parameter(pairs if paired else torch.view_as_complex(pairs))
        self.head = nn.Linear(6, CLASSES, dtype=torch.float64)
        nn.init.normal_(self.head.weight, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return self.head((x.to(weight.dtype) @ weight).abs().tanh())


class Recurrent(nn.Module):
    """Embedding with a padding index, LSTM, classifier; called with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(words))[0][:, -1])


class BagOfWords(nn.Module):
    """An embedding whose table is also the output layer's weight: one parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(words).mean(1)))


def smooth(width: int = 5) -> nn.Sequential:
    """A network without kinks, for finite differences."""
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, CLASSES))


def vit() -> nn.Module:
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zero in torchvision, so that no gradient reaches the encoder
    return model


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Conv1d(8, 4, 3), nn.Flatten(), nn.Linear(16, CLASSES)
    )


def frozen() -> nn.Module:
    model = smooth()
    model[0].requires_grad_(False)
    return model


def converted(block: type[nn.Module] = ResidualMLP, backward: str = "reversible") -> nn.Module:
    model = Chain([block() for _ in range(4)])
    return mn.convert(model, torch.randn(2, 16), gamma=0.9, backward=backward)


def momentum_net() -> nn.Module:
    functions = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
    return nn.Sequential(nn.Linear(3, 6), mn.MomentumNet(functions, gamma=0.9, use_backprop=False), nn.Linear(6, 4))


def words(count: int) -> Tensor:
    return torch.randint(11, (count, 7))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=CLASSES), lambda n: torch.randn(n, 3, 32, 32)),
    "vit": (vit, lambda n: torch.randn(n, 3, 32, 32)),
    "lstm": (Recurrent, lambda n: {"words": words(n)}),
    "group_norm": (group_norm, lambda n: (torch.randn(n, 3, 8),)),
    "embedding": (BagOfWords, words),
    "frozen": (frozen, lambda n: torch.randn(n, 3)),
    "dropout": (lambda: Chain([DepthDropBlock() for _ in range(3)]), lambda n: torch.randn(n, 16)),
    "converted": (converted, lambda n: torch.randn(n, 16)),
    "momentum_net": (momentum_net, lambda n: torch.randn(n, 3)),
}


def network(name: str, *, count: int = 4, batches: int = 3, double: bool = False) -> tuple[nn.Module, Batches]:
    """The network in training mode and its batches, the same in every call."""
    torch.manual_seed(5)
    build, inputs = NETWORKS[name]
    model = build().train()
    data = [(inputs(count), torch.randint(CLASSES, (count,))) for _ in range(batches)]
    return (model.double(), in_float64(data)) if double else (model, data)


def small(count: int = 6, batches: int = 3) -> tuple[nn.Sequential, Batches]:
    """`smooth` in float64."""
    torch.manual_seed(7)
    data = [(torch.randn(count, 3), torch.randint(CLASSES, (count,))) for _ in range(batches)]
    return smooth().double(), in_float64(data)


def in_float64(batches: Batches) -> Batches:
    return [(torch.utils._pytree.tree_map(_double, inputs), target) for inputs, target in batches]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def fails_in_call(number: int, error: type[BaseException] | None) -> Callable[[Any, Tensor], Tensor]:
    """A loss function whose call of that number raises the error, or returns NaN where there is none."""
    calls = []

    def loss(output: Any, target: Tensor) -> Tensor:
        calls.append(0)
        value = F.cross_entropy(output, target)
        if len(calls) != number:
            return value
        if error is not None:
            raise error
        return value * torch.nan

    return loss
