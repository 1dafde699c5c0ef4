"""A network and a training that take milliseconds, for the tests of lottery tickets."""

from __future__ import annotations

import torch
from torch import nn

from momentumnet.prune import TrainingLog

STEPS = 8
_GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 6, dtype=torch.float64, generator=_GENERATOR)
Y = torch.randn(32, 4, dtype=torch.float64, generator=_GENERATOR)


def network(seed: int = 0) -> nn.Sequential:
    """72 and 48 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def train(model: nn.Module, log: TrainingLog) -> None:
    """SGD on all of the data; reports minus the loss after every second step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(log.start_step, STEPS):
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        optimizer.step()
        log.step()
        if step % 2:
            log.accuracy(-loss.item())
        if log.stop:
            break
