"""A plan in which every choice stands: it survives copies, files, two processes and other parameters, bit for bit."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import momentumnet as mn
from tests.contract.reference import assert_same, loss_of, train_step
from tests.models import WIDTH, ResidualMLP
from tests.planner.networks import images
from tests.processes import PROCESSES, run_in_two
from tests.tally import Tally


class Counted(ResidualMLP):
    """Counts its calls, and draws random numbers in them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Tally([0])  # so that recomputes count

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return x + nn.functional.dropout(self.inner(x), 0.1, self.training)


class Part(nn.Sequential):
    """A composite module outside the streams."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__(nn.Linear(WIDTH, 2 * WIDTH), nn.Tanh(), nn.Linear(2 * WIDTH, width))
        self.calls = Tally([0])  # so that recomputes count

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return super().forward(x)


class Mixed(nn.Module):
    """Two streams, and parts in front, between and behind."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.enter = Part(2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first = nn.Sequential(*[Counted() for _ in range(4)])
        self.between = Part(WIDTH // 2)
        self.narrow = nn.Linear(WIDTH // 2, WIDTH)
        self.second = nn.ModuleList([Counted() for _ in range(3)])
        self.end = Part(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.between(self.first(self.enter(self.start(x)))))
        for block in self.second:
            x = block(x)
        return self.end(x)


# How each unit comes to its backward; those that are not named are stored.
WAYS = {
    "start": "checkpointed",
    "first.0": "reversible",
    "first.1": "reversible",
    "first.2": "reversible",
    "between": "checkpointed",
    "second.0": "checkpointed",
    "second.1": "checkpointed",
}


def rows(seed: int = 1) -> Tensor:
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(seed))


def stock() -> nn.Module:
    torch.manual_seed(7)
    return Mixed().train()


def mixed(model: nn.Module) -> nn.Module:
    plan = mn.plan(model, rows(), gamma=1 / 8, budget="least")
    units = [
        dataclasses.replace(unit, way=WAYS.get(unit.names[0], "stored"), group=number)
        for number, unit in enumerate(plan.units)
    ]
    assert {unit.names[0] for unit in units} >= WAYS.keys()
    return mn.convert(model, plan=dataclasses.replace(plan, units=tuple(units)))


def recomputed(net: nn.Module) -> set[str]:
    """Names of the parts and blocks that a training step calls twice."""
    counted = {name: module for name, module in net.named_modules() if isinstance(module, (Counted, Part))}
    before = {name: module.calls[0] for name, module in counted.items()}
    loss_of(net(rows())).backward()
    net.zero_grad()
    return {name for name, module in counted.items() if module.calls[0] == before[name] + 2}


def through_a_file(net: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda net: net,
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": through_a_file,
    "like": lambda net: mn.convert(stock(), like=mn.describe(net)),
}


@pytest.mark.parametrize("copied", COPIES)
def test_copies_keep_the_choices_and_the_bits(copied: str) -> None:
    model = stock()
    net = mixed(model)
    outcomes = []
    for step in range(2):  # one that has learned its scales, too
        found = COPIES[copied](net)
        found.load_state_dict(net.state_dict())
        mn.load_training_state(found, mn.training_state(net))
        assert recomputed(copy.deepcopy(found)) == WAYS.keys()
        outcomes.append(train_step(found, (rows(step),)))
        if found is not net:
            train_step(net, (rows(step),))
        net.zero_grad()
    stored = mn.convert(model, rows(), backward="stored")
    for step, got in enumerate(outcomes):
        assert_same(got, train_step(copy.deepcopy(stored), (rows(step),)), tolerance=0.0)


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_between_forward_and_backward_is_its_own(copied: str) -> None:
    net = mixed(stock())
    output = net(rows())
    other = COPIES[copied](net)
    loss_of(output).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert other is net or all(parameter.grad is None for parameter in other.parameters())


def test_other_parameters_through_functional_call() -> None:
    model = stock()
    found = []
    for net in (mn.convert(model, rows(), backward="stored"), mixed(model)):
        leaves = {name: (2 * value.detach()).requires_grad_() for name, value in net.named_parameters()}
        torch.manual_seed(3)
        output = functional_call(net, leaves, (rows(),))
        found.append([output, *torch.autograd.grad(loss_of(output), list(leaves.values()))])
    assert all(torch.equal(got, expected) for got, expected in zip(*found, strict=True))
    assert all(gradient.norm() > 0 for gradient in found[0])


def in_two(rank: int, folder: Path) -> None:
    net = mixed(stock()).eval()  # without dropout, of which the processes draw their own
    model = DistributedDataParallel(net)
    for _ in range(2):
        model.zero_grad()
        loss_of(model(rows().chunk(PROCESSES)[rank])).backward()
    assert recomputed(copy.deepcopy(net)) == WAYS.keys()
    torch.save({name: p.grad for name, p in net.named_parameters()}, folder / f"{rank}.pt")


def test_two_processes_give_the_gradients_of_one(tmp_path: Path) -> None:
    run_in_two(in_two, tmp_path)
    net = mn.convert(stock(), rows(), backward="stored").eval()
    loss_of(net(rows())).backward()
    for rank in range(PROCESSES):
        got = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in net.named_parameters():
            assert (got[name] - parameter.grad).norm() <= 2e-5 * parameter.grad.norm() + 1e-6, name


STREAM_FIELDS = ("name", "blocks", "gamma", "final_velocity", "initial_velocity", "branch_is_output")


class Configured(nn.Sequential):
    """No stream, and a config that is saved with the model."""

    def __init__(self) -> None:
        widths = (3, 8, 12, 16, 20)
        convolutions = [nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise(widths)]
        super().__init__(*[nn.Sequential(conv, nn.Tanh(), nn.Softplus(), nn.Tanh()) for conv in convolutions])
        self.config = SimpleNamespace(to_dict=dict, save_pretrained=print)


@pytest.mark.parametrize("budget", ["least", "1GiB"])
def test_a_network_without_streams_and_with_a_config_is_planned_as_well(budget: str) -> None:
    torch.manual_seed(0)
    model, x = Configured(), images()
    expected = train_step(copy.deepcopy(model), (x,))
    net = mn.convert(model, x, budget=budget)
    assert not hasattr(net.config, "momentumnet")  # it computes what its class says
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net]
    if budget == "least":
        copies.append(mn.convert(model, like=mn.describe(net)))
        assert mn.describe(copies[-1]) == mn.describe(net)
        assert type(mn.revert(net)[0]) is nn.Sequential
    for copied in copies:
        assert_same(train_step(copied, (x,)), expected, tolerance=0.0)


def test_weights_of_a_stream_that_the_plan_does_not_know_are_told_of() -> None:
    model, x = Configured(), images()
    model.config.momentumnet = {"streams": [dict.fromkeys(STREAM_FIELDS, "blocks")]}
    with pytest.warns(mn.MomentumNetWarning, match=r"trained as another Momentum ResNet .*; now without streams\)"):
        net = mn.convert(model, x, budget="least")
    assert not hasattr(net.config, "momentumnet")
