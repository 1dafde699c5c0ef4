"""Switches of PyTorch's around a forward alone, or around the backward: which kernels, which types, which device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import momentumnet as mn
from tests.contract.reference import Outcome, assert_same, loss_of

WIDTH = 8
WAYS: list[dict[str, Any]] = [
    {"backward": "reversible"},
    {"backward": "checkpointed"},
    {"backward": "reversible", "others": "checkpoint"},
]
HUGE = 1e6  # times a branch: past the headroom of any scale that was chosen for branches of 1


class Attention(nn.Module):
    """Two kernels give it other last bits, and save other tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.enter(x).unflatten(-1, (6, -1)).transpose(1, 2).chunk(3, 1)
        return x + self.leave(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Positions(nn.Module):
    """Makes a tensor of the default type."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x) * torch.linspace(0, 1, WIDTH).to(x.dtype))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x.transpose(1, 2))).transpose(1, 2)


class Asking(nn.Module):
    """Goes by a switch itself."""

    def __init__(self, ask: Callable[[], bool]) -> None:
        super().__init__()
        self.layer, self.ask = nn.Linear(WIDTH, WIDTH), ask

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x) * (2 if self.ask() else 1))


class Network(nn.Module):
    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(WIDTH, WIDTH), block())
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.inner: Callable[[], AbstractContextManager[Any]] = nullcontext  # around the second block
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.factor
        for number, block in enumerate(self.blocks):
            with self.inner() if number == 1 else nullcontext():
                x = block(x)
        return x


@contextmanager
def set_for_a_while(put: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    put(value)
    try:
        yield
    finally:
        put(before)


def is_set(ask: Callable[[], bool]) -> Callable[[], nn.Module]:
    return lambda: Asking(ask)


def deterministic() -> AbstractContextManager[None]:
    return set_for_a_while(torch.use_deterministic_algorithms, True, False)


SWITCHES: dict[str, tuple[Callable[[], nn.Module], Callable[[], AbstractContextManager[Any]]]] = {
    "kernel of attention": (Attention, lambda: sdpa_kernel(SDPBackend.MATH)),
    "order of kernels": (
        is_set(lambda: torch._C._get_sdp_priority_order()[0] == int(SDPBackend.MATH)),
        lambda: sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], set_priority=True),
    ),
    "default type": (Positions, lambda: set_for_a_while(torch.set_default_dtype, torch.float64, torch.float32)),
    "mkldnn": (Convolution, lambda: torch.backends.mkldnn.flags(enabled=False)),
    "cudnn": (is_set(lambda: torch.backends.cudnn.enabled), lambda: torch.backends.cudnn.flags(enabled=False)),
    "deterministic": (is_set(torch.are_deterministic_algorithms_enabled), deterministic),
    "device": (is_set(lambda: torch.empty(0).is_meta), lambda: torch.device("meta")),
}


def rows() -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def network(block: Callable[[], nn.Module], options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return mn.convert(Network(block), rows(), **options)


def steps(net: nn.Module, around: Callable[[], AbstractContextManager[Any]], *, forward: bool) -> list[Outcome]:
    """Three training steps, with the switch around the forward alone or around the backward alone."""
    found = []
    for _ in range(3):
        net.zero_grad()
        x = rows().requires_grad_()
        with around() if forward else nullcontext():
            output = net(x)
        loss = loss_of(output)
        with nullcontext() if forward else around():
            loss.backward()
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()} | {"input": x.grad}
        found.append(Outcome(output.detach(), gradients, {}, torch.get_rng_state()))
    return found


def standing() -> list[object]:
    """What the switches are."""
    kinds = [getattr(torch._C, f"_get_{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math", "cudnn")]
    others = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled, torch.are_deterministic_algorithms_enabled()
    return [*kinds, *others, torch._C._get_sdp_priority_order(), torch.get_default_dtype(), torch.empty(0).device]


@pytest.mark.parametrize("forward", [True, False], ids=["forward", "backward"])
@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_recompute_goes_by_the_switches_of_its_forward(switch: str, options: dict[str, Any], forward: bool) -> None:
    block, around = SWITCHES[switch]
    before = standing()
    expected = steps(network(block, {"backward": "stored"}), around, forward=forward)
    found = steps(network(block, options), around, forward=forward)
    for got, outcome in zip(found, expected, strict=True):
        assert_same(got, outcome)
    assert standing() == before


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_forward_that_is_played_again_does_so_too(switch: str, caplog: pytest.LogCaptureFixture) -> None:
    block, around = SWITCHES[switch]
    stored, reversible = (network(block, {"backward": way}) for way in ("stored", "reversible"))
    for net in (stored, reversible):
        net.inner = around
        steps(net, nullcontext, forward=True)
        net.factor = HUGE
    caplog.clear()
    found, expected = (steps(net, nullcontext, forward=True) for net in (reversible, stored))
    assert "played again" in caplog.text
    assert_same(found[0], expected[0])
