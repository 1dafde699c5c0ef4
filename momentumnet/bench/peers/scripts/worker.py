"""Measures one peer: run as ``python worker.py SETTINGS``, a JSON object; writes a JSON line for each measurement.

Settings: ``script`` (the peer's file), ``memory`` (the file of `momentumnet.memory`), ``output``, ``device``,
``repeats``, ``width``, ``batch``, and ``runs``, a list of ``[depth, gamma]`` with gamma null for additive couplings.

A peer's file defines ``build(branches, gamma, stored)``: the module that applies its rule to the branches, with stored
activations or its own backward pass. The rules, in plain PyTorch:

    momentum    v <- gamma v + (1 - gamma) f(x);  x <- x + v
    additive    (a, b) <- (b, a + f(b)),  both starting as x; their concatenation is the output
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class MomentumRule(nn.Module):
    """The momentum rule under ordinary autograd."""

    def __init__(self, branches: Sequence[nn.Module], gamma: float) -> None:
        super().__init__()
        self.branches, self.gamma = nn.ModuleList(branches), gamma

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for branch in self.branches:
            v = self.gamma * v + (1 - self.gamma) * branch(x)
            x = x + v
        return x


class AdditiveRule(nn.Module):
    """The additive coupling of two streams under ordinary autograd."""

    def __init__(self, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x, x
        for branch in self.branches:
            a, b = b, a + branch(b)
        return torch.cat([a, b], dim=1)


def load(name: str, path: str) -> ModuleType:
    """Imports the file ``path`` as module ``name``."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def measure(settings: dict[str, Any], peer: ModuleType, memory: ModuleType, depth: int, gamma: float | None) -> Any:
    """One network: its gradient error, and its cost beside that of the plain rule with stored activations."""
    torch.manual_seed(0)
    width, device = settings["width"], settings["device"]
    branches = [nn.Sequential(nn.Linear(width, width), nn.Tanh()).to(device) for _ in range(depth)]
    x = torch.randn(settings["batch"], width, device=device)
    plain = MomentumRule(branches, gamma) if gamma is not None else AdditiveRule(branches)
    peers = peer.build(branches, gamma, False)
    step = partial(run_step, x)
    gradient = gradient_of(step, peers, branches)
    stored = gradient_of(step, peer.build(branches, gamma, True), branches)
    double = copy.deepcopy(plain).double()
    exact = gradient_of(partial(run_step, x.double()), double, list(double.branches))
    networks = {"peer": peers, "plain": plain}
    reports = {name: memory.measure_memory(partial(step, network)) for name, network in networks.items()}
    seconds = step_seconds(networks, step, settings["repeats"], torch.device(device))
    return {
        "gradient_error": relative(gradient, stored),
        "float64_error": relative(gradient, exact),
        "plain_float64_error": relative(gradient_of(step, plain, branches), exact),
        "peak_bytes": reports["peer"].peak_bytes,
        "plain_peak_bytes": reports["plain"].peak_bytes,
        "step_seconds": seconds["peer"],
        "plain_step_seconds": seconds["plain"],
    }


def run_step(x: Tensor, network: nn.Module) -> None:
    """One forward and backward pass."""
    network(x.clone().requires_grad_()).square().mean().backward()


def gradient_of(step: Callable[[nn.Module], None], network: nn.Module, branches: Sequence[nn.Module]) -> Tensor:
    """The gradient of the branches' parameters, as one float64 vector."""
    parameters = [parameter for branch in branches for parameter in branch.parameters()]
    for parameter in parameters:
        parameter.grad = None
    step(network)
    missing = sum(parameter.grad is None for parameter in parameters)
    if missing:
        raise ArithmeticError(f"{missing} of {len(parameters)} parameters got no gradient")
    return torch.cat([parameter.grad.double().flatten() for parameter in parameters if parameter.grad is not None])


def relative(value: Tensor, reference: Tensor) -> float:
    """The L2 norm of the difference, relative to the reference."""
    return float(torch.linalg.vector_norm(value - reference) / torch.linalg.vector_norm(reference))


def step_seconds(
    networks: dict[str, nn.Module], step: Callable[[nn.Module], None], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median duration of a step; the networks take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(repeats):
        for name, network in networks.items():
            synchronize(device)
            start = time.perf_counter()
            step(network)
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measures every run and writes it at once, so that what a crash ends is known up to there."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    with Path(settings["output"]).open("w") as output:
        memory = load("worker_memory", settings["memory"])
        peer = load("worker_peer", settings["script"])
        for depth, gamma in settings["runs"]:
            try:
                outcome = measure(settings, peer, memory, depth, gamma)
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
                outcome = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            output.write(json.dumps({"depth": depth, "gamma": gamma, **outcome}) + "\n")
            output.flush()


if __name__ == "__main__":
    main()
