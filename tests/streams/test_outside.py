"""Which layers outside the streams are a chain: those whose recompute frees memory that nobody else keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from momentumnet.streams.finding.discover import discover
from tests.models import WIDTH, Flat, ResidualMLP

TWICE = nn.Tanh()


def frozen(layer: nn.Module) -> nn.Module:
    """Keeps nothing for backward, as its input needs no gradient either."""
    return layer.requires_grad_(False)


@pytest.mark.parametrize(
    ("layers", "chains"),
    [
        # Layers with weights begin a chain, those that are cheap to compute again go on with it.
        (
            (nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Sigmoid()),
            (("0", "1", "2"), ("3", "4")),
        ),
        ((nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Sigmoid()), (("0", "1", "2", "3"),)),
        # The tanh's output is kept by the next layer and its input by nobody: recomputing it would gain nothing.
        ((frozen(nn.Linear(WIDTH, WIDTH)), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)), ()),
        # A layer that overwrites its input cannot be the first, and one that is called twice has two places.
        ((frozen(nn.Linear(WIDTH, WIDTH)), nn.ReLU(inplace=True), nn.PReLU(), nn.Tanh()), (("2", "3"),)),
        ((nn.Linear(WIDTH, WIDTH), TWICE, nn.Sigmoid(), nn.Softplus(), TWICE), (("2", "3"),)),
        # A module outside that is recomputed keeps its argument, so the tanh's output stays.
        (
            (
                frozen(nn.Linear(WIDTH, WIDTH)),
                nn.BatchNorm1d(WIDTH),
                nn.Tanh(),
                nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
            ),
            (),
        ),
        # What keeps nothing cannot begin one; what the stream behind keeps is no reason to keep it here.
        ((frozen(nn.Linear(WIDTH, WIDTH)), nn.Identity(), nn.BatchNorm1d(WIDTH), nn.Tanh()), (("2", "3"),)),
    ],
)
def test_which_layers_are_a_chain(layers: tuple[nn.Module, ...], chains: tuple[tuple[str, ...], ...]) -> None:
    found = discover(Flat(*layers), torch.randn(5, WIDTH))
    assert found.chains == tuple(tuple(f"layers.{name}" for name in chain) for chain in chains)


class Beside(nn.Module):
    """Layers beside a stream, which has the same input; it is overwritten later, if asked for."""

    def __init__(self, *layers: nn.Module, overwritten: bool = False) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.ones(WIDTH))
        self.layers = nn.ModuleList(layers)
        self.blocks = nn.Sequential(*[ResidualMLP(WIDTH) for _ in range(2)])
        self.overwritten = overwritten

    def forward(self, x: Tensor) -> Tensor:
        x = self.start * x
        y = x
        for layer in self.layers:
            y = layer(y)
        return self.blocks(x.add_(1) if self.overwritten else x) + y


def test_input_that_only_the_stream_keeps_is_no_gift() -> None:
    """The stream will not keep it after conversion: one tensor freed, one tensor kept."""
    assert discover(Beside(nn.Sigmoid(), nn.Hardtanh()), torch.randn(5, WIDTH)).chains == ()


def test_input_that_is_overwritten_later_begins_no_chain() -> None:
    layers = (nn.Tanh(), nn.Sigmoid(), nn.Softplus())
    assert discover(Beside(*layers), torch.randn(5, WIDTH)).chains == (("layers.0", "layers.1", "layers.2"),)
    assert discover(Beside(*layers, overwritten=True), torch.randn(5, WIDTH)).chains == (("layers.1", "layers.2"),)


class Overwriting(nn.Module):
    """Overwrites what it takes, which is of another shape than what it returns."""

    def __init__(self, *, argument: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.inner = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.Tanh())
        self.argument = argument

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        (beside if self.argument else x).add_(self.shift)
        return self.inner(x + beside)


class Parent(nn.Module):
    """A module between layers, which gives it tensors of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.first, self.module, self.last = nn.Linear(WIDTH, WIDTH), module, nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.module(x, 2 * x))


@pytest.mark.parametrize("argument", [False, True])
def test_a_module_that_overwrites_an_argument_is_recomputed_from_what_comes_later(argument: bool) -> None:
    model = Parent(Overwriting(argument=argument))
    assert discover(model, torch.randn(5, WIDTH)).outside == ("module.inner",)
