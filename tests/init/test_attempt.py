"""A model whose initialisation fails midway is as it was: tensors, structure, hooks, modes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from momentumnet.init.attempt import all_or_nothing


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_everything_comes_back(error: type[BaseException]) -> None:
    model = network()
    model(torch.randn(3, 4)).sum().backward()
    before, hooks = copy.deepcopy(model), []
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    weight = model[0].weight
    hook = model[2].register_forward_pre_hook(lambda *_: hooks.append("kept"))

    def fail_midway() -> None:
        weight.data.mul_(2)
        weight.grad.zero_()
        model[2].weight.grad = None
        model[2].weight.requires_grad_(False)
        model[2].register_parameter("extra", nn.Parameter(torch.zeros(1)))
        model[2].register_forward_hook(lambda *_: hooks.append("new"))
        model.eval()
        model[1].running_mean.fill_(7)
        model[1] = nn.Identity()
        raise error

    with pytest.raises(error), all_or_nothing(model):
        fail_midway()
    assert model.training
    assert model[1].training
    assert model[0].weight is weight
    assert list(model.state_dict()) == list(before.state_dict())
    for (name, value), expected in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, grad)
    model(torch.randn(3, 4))
    assert hooks == ["kept"]
    hook.remove()
    model(torch.randn(3, 4))
    assert hooks == ["kept"]


def test_success_keeps_the_changes() -> None:
    model = network()
    with all_or_nothing(model):
        model[0].weight.data.fill_(3)
    assert (model[0].weight == 3).all()
