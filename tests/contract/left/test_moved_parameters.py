"""Parameters that a block's own forward moves: each is moved once, and a recompute sees what its forward saw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import momentumnet as mn
from tests.contract.branches import WIDTH, Network

WIDE = 80  # so that a product has more elements than are copied without a reason
OPTIONS = [
    {"backward": "reversible"},
    {"backward": "checkpointed"},
    {"gamma": 0, "backward": "checkpointed", "others": "checkpoint"},
]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, WIDE), nn.Linear(WIDE, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.leave(torch.tanh(self.enter(x)))
        return output


class Teacher(Branch):
    """An average of the layer's weights, taken behind its use or before."""

    uses = False

    def __init__(self) -> None:
        super().__init__()
        self.average = nn.Linear(WIDTH, WIDE).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        if self.uses:
            self.move()
            return super().forward(x) * (1 + self.average(x).mean(1, keepdim=True))
        output = super().forward(x)
        self.move()
        return output

    def move(self) -> None:
        for average, own in zip(self.average.parameters(), self.enter.parameters(), strict=True):
            average.data = average.data * 0.9 + own.data * 0.1


class UsedTeacher(Teacher):
    uses = True


class InPlace(Teacher):
    """The same in place."""

    def move(self) -> None:
        with torch.no_grad():
            for average, own in zip(self.average.parameters(), self.enter.parameters(), strict=True):
                average.mul_(0.9).add_(own, alpha=0.1)


class Count(Branch):
    """Counts its calls in a parameter, past its counter of changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.data += 1
        return super().forward(x) / self.calls


class Normalised(Branch):
    """Gives its rows the same length whenever it is called."""

    def forward(self, x: Tensor) -> Tensor:
        self.enter.weight.data = 0.5 * F.normalize(self.enter.weight.data)
        return super().forward(x)


class Shortened(Branch):
    """Rows of an embedding that are scaled down in place when they are looked up; once more they would be others."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(200, WIDTH, max_norm=0.7)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.rows(x.detach().argmax(1)))


class FromData(Branch):
    """Sets its offset and scale by the first batch (activation normalisation)."""

    def __init__(self) -> None:
        super().__init__()
        self.offset, self.scale = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.ones(WIDTH))
        self.is_set = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_set:
            with torch.no_grad():
                self.offset.copy_(-x.mean(0))
                self.scale.copy_(1 / (x.std(0) + 1))
            self.is_set = True
        return super().forward((x + self.offset) * self.scale)


class Cast(Branch):
    """It rests in another type between its calls."""

    def forward(self, x: Tensor) -> Tensor:
        self.to(torch.float32)
        output = super().forward(x)
        self.to(torch.float64)
        return output


def nets(kind: type[nn.Module], options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """As the options have it, and the same with stored activations."""
    torch.manual_seed(0)
    model, x = Network(kind, kind), torch.randn(8, WIDTH)
    stored = {"backward": "stored"} if options.get("gamma") != 0 else {"gamma": 0}
    return mn.convert(model, x, **options), mn.convert(model, x, **stored)


def step(net: nn.Module, seed: int) -> list[Tensor]:
    """The gradients; weights move by them."""
    x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(seed))
    net.zero_grad()
    net(x).square().mean().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.1 * (0 if parameter.grad is None else parameter.grad)
    return gradients


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [Teacher, UsedTeacher, InPlace, Count, Normalised, Shortened, FromData, Cast])
def test_they_are_as_with_stored_activations(kind: type[nn.Module], options: dict[str, Any]) -> None:
    found, stored = nets(kind, options)
    for seed in range(4):
        torch.testing.assert_close(step(found, seed), step(stored, seed), rtol=1e-4, atol=1e-7)
        for parameter, other in zip(found.parameters(), stored.parameters(), strict=True):
            torch.testing.assert_close(parameter, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_moved_and_used_in_place_is_told_once_and_known_from_then_on(options: dict[str, Any]) -> None:
    """Its value before the first call is gone by the time that it is seen to be moved."""

    class UsedInPlace(InPlace):
        uses = True

    found, stored = nets(UsedInPlace, options)
    with pytest.raises(mn.ReconstructionError):
        step(found, 0)
    found.load_state_dict(stored.state_dict())
    for seed in range(3):
        torch.testing.assert_close(step(found, seed), step(stored, seed), rtol=1e-4, atol=1e-7)


def test_the_parameters_are_the_same_objects_at_the_same_places() -> None:
    found, _ = nets(InPlace, OPTIONS[2])
    step(found, 0)
    parameters = list(found.parameters())
    x = torch.randn(8, WIDTH)
    output = found(x)
    places, counters = [p.data_ptr() for p in parameters], [p._version for p in parameters]
    output.square().mean().backward()
    assert all(map(lambda left, right: left is right, parameters, found.parameters()))
    assert [p.data_ptr() for p in parameters] == places
    assert [p._version for p in parameters] == counters
    assert all(p.grad is not None for p in parameters if p.requires_grad)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("frozen_first", [False, True])
def test_parameters_that_are_frozen_or_thawed_between_forward_and_backward(
    options: dict[str, Any], frozen_first: bool
) -> None:
    nets_of_both = nets(Branch, options)
    gradients = []
    for net in nets_of_both:
        found: list[Tensor | None] = []
        for _ in range(3):  # the last ones are left early, where they may be
            net.zero_grad(set_to_none=True)
            own = [parameter for name, parameter in net.named_parameters() if name.endswith("enter.weight")]
            for parameter in own:
                parameter.requires_grad_(not frozen_first)
            loss = net(torch.ones(6, WIDTH)).square().mean()
            for parameter in own:
                parameter.requires_grad_(frozen_first)
            loss.backward()
            assert all(parameter.requires_grad == frozen_first for parameter in own)
            found.extend(parameter.grad for parameter in net.parameters())
        gradients.append(found)
    ours, stored = gradients
    assert len(ours) == len(stored)
    for one, other in zip(ours, stored, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
