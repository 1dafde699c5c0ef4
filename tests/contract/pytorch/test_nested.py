"""Nested tensors beside a stream: as an argument, as a second output, behind it; and as what a block may not return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, ResidualMLP

LAYOUTS = [torch.strided, torch.jagged]
WAYS = [{"backward": "reversible"}, {"backward": "checkpointed"}, {"others": "checkpoint"}]
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")


def nested(x: Tensor, layout: torch.layout) -> Tensor:
    return torch.nested.as_nested_tensor([row[: 1 + number] for number, row in enumerate(x)], layout=layout)


class Behind(nn.Module):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.inner, self.layout = nn.Linear(WIDTH, WIDTH), layout

    def forward(self, x: Tensor) -> Tensor:
        return nested(self.inner(x), self.layout)


class Block(ResidualMLP):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x: Tensor, beside: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x + (beside * 0.5).sin().to_padded_tensor(0.0, x.shape))
        return y, nested(2 * y, self.layout)


class Network(nn.Module):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(layout) for _ in range(4)])
        self.behind = Behind(layout)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        beside = [nested(x, self.behind.layout)]
        for block in self.blocks:
            x, found = block(x, beside[-1])
            beside.append(found)
        return self.behind(x), beside[1:]


def network(layout: torch.layout) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Network(layout), torch.randn(3, 3, WIDTH)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_gradients_are_those_of_stored_activations(layout: torch.layout, way: dict[str, Any]) -> None:
    model, x = network(layout)
    found = []
    for options in ({"backward": "stored"}, way):
        net = mn.convert(model, x, gamma=0.5, **options)
        output, beside = net(x)
        sum(part.to_padded_tensor(0.0).square().sum() for part in (output, *beside)).backward()
        found.append([parameter.grad for parameter in net.parameters()])
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_argument_has_a_gradient_of_its_own(layout: torch.layout, way: dict[str, Any]) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(layout) for _ in range(4)])

        def forward(self, x: Tensor, beside: Tensor) -> Tensor:
            for block in self.blocks:
                x, _ = block(x, beside)
            return x

    torch.manual_seed(0)
    model, x = Around(), torch.randn(3, 3, WIDTH)
    found = []
    for options in ({"backward": "stored"}, way):
        beside = nested(x, layout).requires_grad_()
        mn.convert(model, (x, beside), gamma=0.5, **options)(x, beside).square().sum().backward()
        assert beside.grad is not None
        found.append(beside.grad.to_padded_tensor(0.0))
    assert found[0].any()
    assert torch.equal(*found)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_outputs_are_compared_and_no_budget_is_planned(layout: torch.layout) -> None:
    model, x = network(layout)
    assert 0 < mn.compare_outputs(model, mn.convert(model, x), [x]).difference < 1
    with pytest.raises(mn.ConversionError, match="returns a nested tensor"):
        mn.convert(model, x, budget="least")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("backward", ["reversible", "checkpointed", "stored"])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_block_that_returns_one_for_a_plain_tensor_is_refused(
    layout: torch.layout, backward: str, gradients: bool
) -> None:
    class Nesting(ResidualMLP):
        active = False

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return nested(y, layout) if self.active else y

    x = torch.randn(3, 3, WIDTH)
    net = mn.convert(nn.Sequential(*[Nesting() for _ in range(4)]), x, backward=backward)
    net[2].active = True
    with torch.set_grad_enabled(gradients), pytest.raises(mn.ConversionError, match=r"'2' returned a nested tensor"):
        net(x)
