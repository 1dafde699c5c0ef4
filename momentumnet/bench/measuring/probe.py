"""Memory and time of one training step, measured without leaving a trace in the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import nn

from momentumnet.memory import MemoryReport, measure_memory


@dataclass(frozen=True)
class StepCost:
    """What one forward and backward pass needs.

    Attributes:
        memory: Tensor bytes beside parameters and their gradients, which exist before the pass.
        seconds: Median duration.
    """

    memory: MemoryReport
    seconds: float


def step_costs(
    networks: Mapping[str, nn.Module],
    step: Callable[[nn.Module], None],
    *,
    repeats: int = 5,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, StepCost]:
    """Measures ``step(network)``, a forward and backward pass, for each network: `step_memory`, then `step_seconds`.

    Args:
        networks: Networks by name.
        step: Runs one forward and backward pass.
        repeats: Timed passes of each network.
        advance: Called after each pass, ``(repeats + 2) * len(networks)`` times in all.
    """
    memory = {name: step_memory(network, step, advance=advance) for name, network in networks.items()}
    seconds = step_seconds(networks, step, repeats=repeats, advance=advance)
    return {name: StepCost(memory[name], seconds[name]) for name in networks}


def step_memory(
    network: nn.Module, step: Callable[[nn.Module], None], *, advance: Callable[[], object] = lambda: None
) -> MemoryReport:
    """The memory of ``step(network)``, in the second of two passes; the network is left as it was."""
    with untouched([network]):
        step(network)  # gradients and the libraries' workspaces exist from here on
        advance()
        report = measure_memory(partial(step, network))
        advance()
    return report


def step_seconds(
    networks: Mapping[str, nn.Module],
    step: Callable[[nn.Module], None],
    *,
    repeats: int,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median duration of ``step(network)`` for each network, which has run before; the networks are left as they were.

    The passes of the networks take turns, so that a machine that gets slower meanwhile slows them all alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    with untouched(networks.values()):
        for _ in range(repeats):
            for name, network in networks.items():
                seconds[name].append(_duration(step, network))
                advance()
    return {name: median(values) for name, values in seconds.items()}


def _duration(step: Callable[[nn.Module], None], network: nn.Module) -> float:
    _synchronize(network)
    start = time.perf_counter()
    step(network)
    _synchronize(network)
    return time.perf_counter() - start


def _synchronize(network: nn.Module) -> None:
    if any(parameter.is_cuda for parameter in network.parameters()):
        torch.cuda.synchronize()


@contextmanager
def untouched(networks: Collection[nn.Module]) -> Iterator[None]:
    """Puts buffers and the random state back, and discards gradients, at the end of the context."""
    buffers = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        for network in networks:
            network.zero_grad(set_to_none=True)
