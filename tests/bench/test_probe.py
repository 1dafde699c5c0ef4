from __future__ import annotations

import torch
from torch import nn

from momentumnet.bench.measuring.probe import step_costs


def step(network: nn.Module) -> None:
    network.train()
    network(torch.ones(4, 10)).sum().backward()


def test_memory_is_counted_beside_parameters_and_gradients() -> None:
    network = nn.Sequential(nn.Linear(10, 1000), nn.Tanh())
    memory = step_costs({"it": network}, step, repeats=1)["it"].memory
    # The input and tanh's result; the loss and its gradient.
    assert memory.saved_bytes == 4 * (4 * 10 + 4 * 1000 + 2)


def test_nothing_is_left_behind() -> None:
    network = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Dropout())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    step_costs({"it": network}, step, repeats=2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_every_pass_is_announced() -> None:
    passes: list[None] = []
    networks = {"a": nn.Linear(10, 1), "b": nn.Linear(10, 1)}
    costs = step_costs(networks, step, repeats=3, advance=lambda: passes.append(None))
    assert list(costs) == ["a", "b"]
    assert len(passes) == (3 + 2) * 2
