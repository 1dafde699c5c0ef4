"""Training with masks is training of the weights that are kept: compared with training that is projected by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from momentumnet.optim import SAM
from momentumnet.prune import apply_masks, masks_of, prunable, remove_masks
from tests.optim.nets import batch, closure_of, loss_of
from tests.prune.nets import perceptron, random_like

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
    "nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.05, weight_decay=0.05),
    "adamw": lambda p: AdamW(p, lr=0.05, weight_decay=0.05),
    "sam": lambda p: SAM(p, SGD, rho=0.2, lr=0.1, momentum=0.9, weight_decay=0.05),
    "asam": lambda p: SAM(p, SGD, rho=1.0, adaptive=True, lr=0.1, momentum=0.9, weight_decay=0.05),
}
STEPS = 5


def train(net: nn.Module, optimizer: Optimizer, after: Callable[[], None], graded: Callable[[], None]) -> None:
    x, y = (part.to(next(net.parameters()).dtype) if part.is_floating_point() else part for part in batch())

    def loss() -> Tensor:
        after()
        return loss_of(net, x, y)

    closure = closure_of(optimizer, loss)

    def with_gradients() -> Tensor:
        value = closure()
        graded()
        return value

    for _ in range(STEPS):
        optimizer.step(with_gradients)
    after()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("masked_late", [False, True])
def test_training_is_that_of_the_kept_weights_alone(name: str, masked_late: bool) -> None:
    net = perceptron()
    reference = copy.deepcopy(net)
    masks = random_like(prunable(net))

    by_hand = [(reference.get_parameter(key), mask) for key, mask in masks.items()]

    @torch.no_grad()
    def project() -> None:
        for parameter, mask in by_hand:
            parameter.mul_(mask)

    def project_gradients() -> None:
        for parameter, mask in by_hand:
            parameter.grad.mul_(mask)

    train(reference, OPTIMIZERS[name](reference.parameters()), project, project_gradients)

    if masked_late:  # the optimizer knows the parameters from before
        optimizer = OPTIMIZERS[name](net.parameters())
        apply_masks(net, masks)
    else:
        apply_masks(net, masks)
        optimizer = OPTIMIZERS[name](net.parameters())

    def zeros_stay_zeros() -> None:
        assert not net[0].weight[~masks["0.weight"]].any()
        assert not net[2].weight[~masks["2.weight"]].any()

    train(net, optimizer, zeros_stay_zeros, lambda: None)
    assert all(torch.equal(masks_of(net)[key], mask) for key, mask in masks.items())
    remove_masks(net)
    assert not torch.equal(net[0].weight, perceptron()[0].weight)
    for key, parameter in reference.named_parameters():
        assert torch.allclose(net.get_parameter(key), parameter, rtol=1e-10, atol=1e-13), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_with_zeros(dtype: torch.dtype) -> None:
    net = perceptron(dtype)
    masks = random_like(prunable(net))
    apply_masks(net, masks)
    before = net[0].weight.detach().clone()

    def zeros_stay_zeros() -> None:
        assert not net[0].weight[~masks["0.weight"]].any()

    train(net, OPTIMIZERS["sgd"](net.parameters()), zeros_stay_zeros, lambda: None)
    assert net[0].weight.dtype == dtype
    assert (net[0].weight != before)[masks["0.weight"]].any()


def test_an_optimizer_goes_on_with_the_same_parameters_after_the_masks_are_gone() -> None:
    net = perceptron()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    apply_masks(net, random_like(prunable(net)))
    train(net, optimizer, lambda: None, lambda: None)
    remove_masks(net)
    before = net[0].weight.detach().clone()
    train(net, optimizer, lambda: None, lambda: None)
    assert not torch.equal(net[0].weight, before)


def test_autocast_uses_the_masked_weights() -> None:
    net = perceptron(torch.float32)
    masks = random_like(prunable(net))
    bare = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items():
            bare.get_parameter(name).mul_(mask)
    apply_masks(net, masks)
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(x), bare(x))
