"""A chain whose recompute is not what its forward was: an error that names the layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import momentumnet as mn
from tests.contract.outside.stem import WIDTH, Stem, images, pair
from tests.models import Flat
from tests.tally import Tally


class Counting(nn.Module):
    """Noise from outside torch's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += self.training
        return self.noisy(x)

    def noisy(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.calls[0])


class Rolling(Counting):
    """The same values in other places."""

    def noisy(self, x: Tensor) -> Tensor:
        return torch.tanh(x.roll(self.calls[0], 1))


class Turning(Counting):
    """Complex values of the same magnitude."""

    def noisy(self, x: Tensor) -> Tensor:
        return torch.polar(x.abs() + 1, x + self.calls[0])


class Magnitude(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@pytest.mark.parametrize("layer", [Counting(), Rolling(), nn.Sequential(Turning(), Magnitude())])
def test_layer_that_does_not_compute_the_same_again_is_an_error(layer: nn.Module) -> None:
    """Leaf layers stand in the chain, the Sequential is recomputed by itself: the same comparison."""
    _, recomputed = pair(lambda: Stem(dropout=layer))
    with pytest.raises(mn.ReconstructionError, match=r"'drop' (did not compute the same|saved other values)"):
        recomputed(images()).sum().backward()


def test_complex_layers_in_a_chain_are_compared() -> None:
    layers = [nn.BatchNorm1d(WIDTH), Turning(), Magnitude(), nn.Softplus(), nn.Sigmoid()]
    model, x = Flat(nn.Linear(WIDTH, WIDTH), *layers, width=WIDTH).train(), torch.randn(5, WIDTH)
    net = mn.convert(model, x, others="checkpoint")
    assert type(net.layers[2]._momentumnet_role.runner).__name__ == "CheckpointChain"
    with pytest.raises(mn.ReconstructionError, match=r"'layers.2' (did not compute the same|saved other values)"):
        net(x).sum().backward()


def test_hook_that_does_not_compute_the_same_again_is_an_error() -> None:
    _, recomputed = pair(Stem)
    factors = iter((2.0, 3.0))
    recomputed.norm.register_forward_hook(lambda module, args, output: output * next(factors))
    recomputed.pool = nn.Identity()  # the chain's end, where it would be seen in any case
    with pytest.raises(mn.ReconstructionError, match="'norm' did not compute the same"):
        recomputed(images()).sum().backward()


def test_changed_forward_that_does_not_compute_the_same_again_is_an_error() -> None:
    _, recomputed = pair(Stem)
    calls = iter((0.0, 1.0))
    recomputed.norm.forward = lambda x: nn.BatchNorm2d.forward(recomputed.norm, x) + next(calls)
    recomputed.between = lambda x: 2 * x  # the chain's end is not reached
    with pytest.raises(mn.ReconstructionError, match="'norm' did not compute the same"):
        recomputed(images()).sum().backward()


def test_hook_for_all_modules_that_does_not_compute_the_same_again_is_an_error() -> None:
    _, recomputed = pair(Stem)
    calls = iter((0.0, 1.0))

    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor | None:
        return output + next(calls) if isinstance(module, nn.BatchNorm2d) else None

    recomputed.between = lambda x: 2 * x
    handle = register_module_forward_hook(hook)
    try:
        with pytest.raises(mn.ReconstructionError, match="'norm' did not compute the same"):
            recomputed(images()).sum().backward()
    finally:
        handle.remove()


def test_parameter_changed_before_backward_is_an_error() -> None:
    _, recomputed = pair(Stem)
    loss = recomputed(images()).sum()
    with torch.no_grad():
        recomputed.norm.weight.mul_(2)
    with pytest.raises(mn.ReconstructionError, match=r"'norm'.*'weight' was changed"):
        loss.backward()
