"""Networks that lie on several devices, seen by fake tensors: a stream is carried on one, generators are of all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import momentumnet as mn
from momentumnet.core.passes.carried import refusal_of_output
from momentumnet.recompute.replay import BlockCall
from momentumnet.recompute.surroundings import generators

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


class Block(nn.Module):
    """Moves its input to where it lies, as the hooks of accelerate do."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4, device=device)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.linear.weight.device)
        return x + self.linear(x).tanh()


def spread(*devices: torch.device) -> nn.Sequential:
    return nn.Sequential(*map(Block, devices))


def test_a_stream_ends_where_the_device_changes() -> None:
    with FakeTensorMode():
        model, x = spread(FIRST, FIRST, FIRST, SECOND, SECOND, SECOND), torch.ones(2, 4, device=FIRST)
        found = mn.plan(model, x).discovery
        assert [tuple(stream.blocks) for stream in found.streams] == [("0", "1", "2"), ("4", "5")]
        assert [(one.reason, list(one.blocks)) for one in found.rejections] == [("moves from cuda:0 to cuda:1", ["3"])]
        assert mn.convert(model, x, inplace=True)(x).device == SECOND


@pytest.mark.parametrize("gradients", [True, False])
def test_a_block_that_moves_the_stream_is_refused(gradients: bool) -> None:
    with FakeTensorMode():
        model = mn.convert(spread(FIRST, SECOND), streams=[""], inplace=True)
        with torch.set_grad_enabled(gradients), pytest.raises(mn.ConversionError, match="lies on cuda:1, the block's"):
            model(torch.ones(2, 4, device=FIRST))


def test_of_one_device_is_carried() -> None:
    with FakeTensorMode():
        x = torch.ones(2, device=SECOND)
        assert refusal_of_output(x + 1, x) is None


class Generator:
    """A generator of a device that there is not."""

    def __init__(self) -> None:
        self.seed = self.offset = 0

    def initial_seed(self) -> int:
        return self.seed

    def manual_seed(self, seed: int) -> None:
        self.seed, self.offset = seed, 0

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


@pytest.fixture
def of_devices(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, Generator]:
    """The generators of two GPUs."""
    found = {FIRST: Generator(), SECOND: Generator()}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(generators, "_cuda_generator", found.__getitem__)
    return found


@pytest.mark.parametrize("drawing", [FIRST, SECOND])
def test_a_recompute_draws_on_each_device_what_the_forward_drew(
    of_devices: dict[torch.device, Generator], drawing: torch.device
) -> None:
    begun: list[int] = []

    def drawn(x: Tensor) -> Tensor:
        begun.append(of_devices[drawing].offset)
        of_devices[drawing].offset += 4
        return block(x)

    with FakeTensorMode():
        block, x = Block(SECOND), torch.ones(2, 4, device=FIRST)
        call = BlockCall("block", block, drawn, x, (x,), {})
        call.first((x,), {})
        of_devices[drawing].offset = 20
        call.again(x)
    assert begun == [0, 0]
    assert of_devices[drawing].offset == 20


@pytest.mark.usefixtures("of_devices")
def test_autocast_is_that_of_where_the_block_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    kinds = []
    with FakeTensorMode():
        block, x = Block(SECOND), torch.ones(2, 4)

        def noted(x: Tensor) -> Tensor:
            kinds.append(torch.is_autocast_enabled("cuda"))
            return x

        with torch.autocast("cuda", torch.bfloat16):
            call = BlockCall("block", block, noted, x, (x,), {})
            call.first((x,), {})
        call.again(x)
    assert kinds == [True, True]
