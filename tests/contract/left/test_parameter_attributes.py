"""Attributes of parameters that a call changes: libraries that hook layers count there (opacus)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.models import WIDTH, Chain, ResidualMLP

OPTIONS: list[dict[str, Any]] = [
    {"backward": "reversible"},
    {"backward": "checkpointed"},
    {"others": "checkpoint"},
    {"coupling": mn.Dr2Net(alpha=0.9, beta=0.1)},
]


def keep_input(layer: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
    if not torch.is_grad_enabled():
        return
    layer.inputs.append(inputs[0].detach())
    layer.weight.pending += 1


def add_sample_gradients(layer: Any, _: Any, gradients: tuple[Tensor, ...]) -> None:
    weight = layer.weight
    weight.pending -= 1
    weight.sums = weight.sums + torch.einsum("no,ni->noi", gradients[0], layer.inputs.pop())
    if weight.pending == 0:  # the last of all forwards
        weight.of_samples = weight.sums


def with_hooks(net: nn.Module) -> list[nn.Linear]:
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        vars(layer)["inputs"] = []
        layer.weight.pending, layer.weight.sums, layer.weight.of_samples = 0, 0, None
        layer.register_forward_hook(keep_input)
        layer.register_full_backward_hook(add_sample_gradients)
    return layers


@pytest.mark.parametrize("options", OPTIONS, ids=["reversible", "checkpointed", "others", "dr2net"])
def test_gradients_of_samples_by_hooks(options: dict[str, Any]) -> None:
    """Of two forwards and one backward: each sample's gradient is that of a batch of one, without hooks."""
    torch.manual_seed(0)
    net = mn.convert(Chain([ResidualMLP() for _ in range(5)]), torch.randn(4, WIDTH), **options).eval()
    alone = mn.convert(
        Chain([ResidualMLP() for _ in range(5)]), torch.randn(4, WIDTH), **{**options, "backward": "stored"}
    )
    alone.load_state_dict(net.state_dict())
    layers, x = with_hooks(net), torch.randn(4, WIDTH, requires_grad=True)
    for _ in range(2):
        for layer in layers:
            layer.weight.sums = 0
        (net(x).square().sum() + net(2 * x).square().sum()).backward()
        assert [(layer.weight.pending, layer.inputs) for layer in layers] == [(0, [])] * len(layers)
    for sample, number in zip(x, range(4), strict=True):
        alone.eval().zero_grad()
        (alone(sample[None]).square().sum() + alone(2 * sample[None]).square().sum()).backward()
        expected = [layer.weight.grad for layer in alone.modules() if isinstance(layer, nn.Linear)]
        for layer, gradient in zip(layers, expected, strict=True):
            torch.testing.assert_close(layer.weight.of_samples[number], gradient, rtol=1e-4, atol=1e-5)


class Noting(ResidualMLP):
    """Notes on its own weight how often it has been used, and the graph of what it computed last."""

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = next(self.parameters())
        weight.uses += 1
        weight.last = self.inner(x)
        return x + weight.last / weight.uses


def test_numbers_and_values_are_those_of_the_forward() -> None:
    gradients = []
    for backward in ("reversible", "stored"):
        torch.manual_seed(0)
        net = Chain([Noting() for _ in range(5)])
        for block in net.blocks:
            next(block.parameters()).uses = 0
        net, x = mn.convert(net, torch.randn(4, WIDTH), backward=backward, inplace=True), torch.randn(4, WIDTH)
        assert [next(block.parameters()).uses for block in net.blocks] == [0] * 5  # convert has looked at them
        for _ in range(3):
            net.zero_grad()
            net(x).square().sum().backward()
        assert [next(block.parameters()).uses for block in net.blocks] == [3] * 5
        gradients.append([parameter.grad for parameter in net.parameters()])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
