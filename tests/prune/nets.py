"""Small networks whose parameters stand in unusual places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentumnet.prune import apply_masks, prunable
from tests.models import WIDTH


class Tied(nn.Module):
    """One matrix in two layers, and an output layer that is the table of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.out = nn.Linear(WIDTH, 6, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(self.table(tokens))))))


class RawBlock(nn.Module):
    """A residual block that holds its parameters itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH)
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.scale = nn.Parameter(torch.ones(1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.tanh(x @ self.w + self.shift)


class Attention(nn.Module):
    """Attention between parameters of two and three dimensions that are no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(5, WIDTH))
        self.bias_table = nn.Parameter(torch.randn(5, WIDTH))
        self.tokens = nn.Parameter(torch.randn(1, 5, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, add_bias_kv=True)
        self.norm = nn.LayerNorm((5, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed + self.bias_table + self.tokens
        return self.norm(x + self.attention(x, x, x)[0])


def raw_chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[RawBlock() for _ in range(3)])


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def random_like(parameters: dict[str, nn.Parameter], seed: int = 0) -> dict[str, Tensor]:
    """Masks that keep about half, drawn without the package."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(p.shape, generator=generator) < 0.5 for name, p in parameters.items()}


def masked(net: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    masks = random_like(prunable(net))
    apply_masks(net, masks)
    return net, masks


def snapshot(net: nn.Module) -> tuple[list[str], list[int], list[type]]:
    return list(net.state_dict()), [id(p) for p in net.parameters()], [type(module) for module in net.modules()]
