"""What a two-step optimizer takes as its base, and what it refuses with a way out."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adadelta, Adam

from momentumnet.optim import SAM, Extragradient
from tests.optim.nets import batch, closure_of, loss_of, network


def test_class_function_and_instance_do_the_same() -> None:
    x, y = batch(torch.float32)
    nets = [network(torch.float32) for _ in range(3)]
    optimizers = [
        SAM(nets[0].parameters(), SGD, lr=0.1, momentum=0.9),
        SAM(nets[1].parameters(), partial(SGD, lr=0.1), momentum=0.9),
        SAM(nets[2].parameters(), SGD(nets[2].parameters(), lr=0.1, momentum=0.9)),
    ]
    for net, optimizer in zip(nets, optimizers, strict=True):
        for _ in range(2):
            optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))  # noqa: B023 called in this round
    for net in nets[1:]:
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), nets[0].parameters(), strict=True))


def test_an_instance_keeps_its_groups_and_state() -> None:
    net, (x, y) = network(), batch()
    base = Adam([{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters()}])
    closure_of(base, lambda: loss_of(net, x, y))()
    base.step()
    groups = [{"params": list(net[0].parameters()), "rho": 0.3}, {"params": list(net[2].parameters())}]
    optimizer = SAM(groups, base)
    assert optimizer.base_optimizer is base
    assert [(group["lr"], group["rho"]) for group in base.param_groups] == [(0.1, 0.3), (1e-3, 0.05)]
    assert optimizer.state is base.state
    assert len(base.state) == 4
    SAM(net.parameters(), base, rho=0.7)
    assert [group["rho"] for group in base.param_groups] == [0.7, 0.7]


def test_a_group_that_is_added_to_the_base_optimizer_is_perturbed_like_the_others() -> None:
    """Code that thaws layers has the optimizer that it made, and not the one around it."""
    found = []
    for past in (True, False):
        net, (x, y) = network(), batch()
        base = SGD(net[0].parameters(), lr=0.1)
        optimizer = SAM(net[0].parameters(), base, rho=0.3)
        (base if past else optimizer).add_param_group({"params": list(net[2].parameters())})
        assert [group.get("rho") for group in optimizer.state_dict()["param_groups"]] == [0.3, 0.3]
        for _ in range(2):
            optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))  # noqa: B023 called in this round
        assert [group["rho"] for group in base.param_groups] == [0.3, 0.3]
        assert copy.deepcopy(optimizer).param_groups[1]["rho"] == 0.3
        found.append(list(net.parameters()))
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_a_state_that_is_loaded_into_the_base_optimizer_leaves_each_group_its_rho() -> None:
    net, (x, y) = network(), batch()
    state = SGD([{"params": layer.parameters()} for layer in (net[0], net[2])], lr=0.2).state_dict()
    optimizer = SAM([{"params": net[0].parameters(), "rho": 0.3}, {"params": net[2].parameters()}], SGD, lr=0.1)
    optimizer.base_optimizer.load_state_dict(state)
    optimizer.step(closure_of(optimizer, lambda: loss_of(net, x, y)))
    assert [(group["lr"], group["rho"]) for group in optimizer.param_groups] == [(0.2, 0.3), (0.2, 0.05)]


def other() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (lambda params: SGD(other(), lr=0.1), {}, "params are not those of the base optimizer"),
        (lambda params: SGD(params[:1], lr=0.1), {}, "got 2 in 1 groups, it has 1 in 1"),
        (lambda params: SGD(params, lr=0.1), {"momentum": 0.9}, r"options \['momentum'\] for a base optimizer that"),
        (lambda params: SGD(params, lr=0.1), {"rho": -1.0}, "rho must be a finite number, 0 or larger, got -1.0"),
        (lambda params: SGD(params, lr=0.1), {"rho": True}, "rho must be a finite number, 0 or larger, got True"),
        (lambda params: SGD(params, lr=0.1), {"eta": "x"}, "eta must be"),
        (lambda params: SGD(params, lr=0.1), {"local": True}, "local=True needs model="),
        (lambda params: SGD(params, lr=0.1), {"blocks": []}, "blocks is empty"),
        (lambda params: SGD(params, lr=0.1), {"blocks": [[]]}, r"blocks\[0\] must hold parameters"),
        (lambda params: SGD(params, lr=0.1), {"blocks": [other()]}, r"blocks\[0\] must hold parameters"),
        (lambda params: SAM(params, SGD, lr=0.1), {}, "SAM cannot be the base"),
        (lambda params: Adadelta, {}, r"Adadelta has options \['rho'\] of its own"),
        (lambda params: LBFGS, {}, "LBFGS evaluates a closure itself"),
        (lambda params: lambda params: nn.Linear(1, 1), {}, "must make a torch.optim.Optimizer, got Linear"),
        (lambda params: 3, {}, "must be an optimizer or its class, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(base: Any, options: dict[str, Any], message: str) -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    with pytest.raises(ValueError, match=message):
        SAM(params, base(params), **options)


def test_options_of_groups_for_an_instance_are_checked() -> None:
    params = other()
    with pytest.raises(ValueError, match=r"group options \['lr'\] belong to the base optimizer"):
        SAM([{"params": params, "lr": 0.3}], SGD(params, lr=0.1))
    optimizer = SAM(params, SGD, lr=0.1)
    with pytest.raises(ValueError, match="rho must be"):
        optimizer.add_param_group({"params": other(), "rho": -1})


@pytest.mark.parametrize("kind", [SAM, Extragradient])
def test_unknown_options_are_the_base_optimizers_to_refuse(kind: type) -> None:
    with pytest.raises(TypeError, match="nosuch"):
        kind(other(), SGD, lr=0.1, nosuch=1)


@pytest.mark.parametrize("kind", [SAM, Extragradient])
def test_a_step_without_closure_says_what_to_do(kind: type) -> None:
    with pytest.raises(ValueError, match=r"needs a closure .* uses first_step\(\) and second_step\(\)"):
        kind(other(), SGD, lr=0.1).step()


def test_chunks_are_checked() -> None:
    optimizer = SAM(other(), SGD, lr=0.1)
    for data, m in (
        ((torch.ones(4), torch.ones(3)), 2),
        ((torch.ones(4),), 0),
        ((torch.ones(4),), 2.0),
        ((torch.ones(0),), 1),
        ((), 1),
    ):
        with pytest.raises(ValueError, match=r"must be"):
            optimizer.step_chunks(lambda *chunk: torch.zeros(()), *data, m=m)
