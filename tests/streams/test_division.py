"""Which modules outside the streams are recomputed whole, and which are divided into what they call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentumnet.streams.finding.discover import discover
from tests.models import WIDTH, ResidualMLP


def layer(width: int = WIDTH, depth: int = 1) -> nn.Sequential:
    """No residual block; deeper ones keep more."""
    inner = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*inner, nn.Linear(width, width + 1), nn.Linear(width + 1, width))


class Glue(nn.Module):
    """Keeps most by itself, beside the modules that it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(), layer()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(20):
            x = torch.sin(x) * 2.0
        return self.second(x)


def parts(*modules: nn.Module) -> list[tuple[str, ...]]:
    found = discover(nn.Sequential(*modules), torch.randn(5, WIDTH))
    return [stage.names for stage in found.timeline if stage.stream is None]


def test_a_module_that_is_most_of_the_network_is_divided() -> None:
    inside = [(f"0.{index}",) for index in range(9)]
    assert parts(nn.Sequential(*[layer() for _ in range(9)])) == inside
    assert parts(nn.Sequential(*[layer() for _ in range(9)]), layer()) == [*inside, ("1",)]


def test_what_it_is_divided_into_is_divided_as_well() -> None:
    inner = nn.Sequential(*[layer() for _ in range(6)])
    assert parts(nn.Sequential(layer(), inner, layer())) == [
        ("0.0",),
        *[(f"0.1.{index}",) for index in range(6)],
        ("0.2",),
    ]


def test_small_modules_are_recomputed_whole() -> None:
    small = [nn.Sequential(*[layer() for _ in range(4)]) for _ in range(10)]
    assert parts(*small) == [(str(index),) for index in range(10)]


def test_a_module_that_keeps_most_by_itself_is_recomputed_whole() -> None:
    assert parts(Glue(), layer()) == [("0",), ("1",)]


def test_a_module_of_layers_that_save_nothing_when_recomputed_is_whole() -> None:
    assert parts(nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(9)])) == [("0",)]


def test_one_that_has_one_large_part_stays_whole() -> None:
    """Divided, it would all be there again in backward, but for the rest."""
    large = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(20)])
    assert parts(nn.Sequential(large, layer()), layer()) == [("0",), ("1",)]


def test_chains_of_layers_in_it_are_parts() -> None:
    convolutions = [part for _ in range(9) for part in (nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh())]
    expected = [tuple(f"0.{3 * index + place}" for place in range(3)) for index in range(9)]
    assert parts(nn.Sequential(*convolutions)) == expected


def test_beside_a_stream() -> None:
    """A small stream, and a large module behind it."""
    blocks = nn.Sequential(ResidualMLP(), ResidualMLP())
    model = nn.Sequential(blocks, nn.Sequential(*[layer(depth=3) for _ in range(6)]))
    found = discover(model, torch.randn(5, WIDTH))
    assert found.outside == tuple(f"1.{index}" for index in range(6))
