"""DistributedDataParallel around converted blocks whose parameters it does not know of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import momentumnet as mn
from momentumnet.errors import ConversionError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


@pytest.fixture(autouse=True)
def _group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network() -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(3))), torch.randn(2, 4)


@pytest.mark.parametrize(
    "options",
    [{"gamma": 1 / 8}, {"gamma": 1 / 8, "backward": "stored"}, {"budget": "least"}, {"budget": 1 << 40}],
    ids=str,
)
def test_a_converted_copy_in_the_place_of_the_network_inside_is_refused(options: dict[str, Any]) -> None:
    model, x = network()
    wrapped = DistributedDataParallel(model)
    wrapped.module = mn.convert(model, x, **options)
    with pytest.raises(ConversionError, match="would not be averaged"):
        wrapped(x)
    with torch.no_grad():
        wrapped(x)  # has no gradients


def test_what_it_knows_of_runs() -> None:
    model, x = network()
    inside = DistributedDataParallel(mn.convert(model, x, gamma=1 / 8))
    inside(x).sum().backward()
    wrapped = DistributedDataParallel(model)
    wrapped.module = mn.convert(wrapped.module, x, gamma=1 / 8, inplace=True)
    wrapped(x).sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters())


def test_what_it_is_told_to_ignore_runs() -> None:
    """Parameters that somebody else looks after (experts of one process each)."""
    model, x = network()
    converted = mn.convert(model, x, gamma=1 / 8)
    ignored = [name for name, _ in converted.named_parameters() if name.startswith("0.")]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(converted, ignored)
    DistributedDataParallel(converted)(x).sum().backward()


def test_frozen_blocks_run() -> None:
    """A block that takes no gradient has nothing to be averaged."""
    model, x = network()
    converted = mn.convert(model, x, gamma=1 / 8)
    wrapped = DistributedDataParallel(converted)
    for parameter in converted[0].parameters():
        parameter.requires_grad_(False)
    wrapped(x).sum().backward()


def test_another_model_that_runs_beside_the_wrapper_runs() -> None:
    """PyTorch keeps the wrapper under way for all threads; and a network may call one that is none of its children."""
    model, x = network()
    converted = mn.convert(network()[0], x, gamma=1 / 8)
    found: list[Any] = []

    def other_thread() -> None:
        try:
            found.append(torch.autograd.grad(converted(x).sum(), list(converted.parameters())))
        except ConversionError as error:
            found.append(error)

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=other_thread)
            thread.start()
            thread.join()
            return self.model(x) + converted(x)

    DistributedDataParallel(Calls())(x).sum().backward()
    assert not isinstance(found[0], ConversionError)


def test_parameters_that_are_newer_than_the_wrapper_are_told_so() -> None:
    """Adapters, for one."""
    model, x = network()
    converted = mn.convert(model, x, gamma=1 / 8)
    converted[0].requires_grad_(False)
    wrapped = DistributedDataParallel(converted)
    converted[0].register_parameter("adapter", nn.Parameter(torch.zeros(4)))
    with pytest.raises(ConversionError, match="newer than the wrapper"):
        wrapped(x)
