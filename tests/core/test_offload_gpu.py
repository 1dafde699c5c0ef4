"""Saved tensors in host memory, on a GPU: what it would be asked to move, and where there is one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from momentumnet.core.outside.offload import Offload
from momentumnet.planner.machine.host_link import measured_link
from momentumnet.recompute.saved import host_copies, offloaded_tensors
from momentumnet.streams.blocks.roles import apply, offloaded
from tests.contract.reference import assert_same, train_step
from tests.core.offloading import ALL, MODULES, built, offloading


class FakeCopies(host_copies.HostCopies):
    """Of tensors without values."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.sizes: list[int] = []

    def takes(self, tensor: Tensor) -> bool:
        return isinstance(tensor, FakeTensor)

    def _allocated(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device="cpu")

    def _begun(self, target: Tensor, source: Tensor) -> object:
        assert {target.device.type, source.device.type} == {"cpu", "cuda"}
        self.sizes.append(source.numel())
        return type("Made", (), {"wait": lambda _: None})()


def test_what_a_gpu_would_be_asked_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        fake = FakeCopies(torch.device("cuda", 0))
        monkeypatch.setattr(offloaded_tensors, "copies_of", lambda device: fake if device.type == "cuda" else None)
        with torch.device("cuda"):
            net = nn.Sequential(nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)), nn.Identity())
            x = torch.empty(512, 1024)
        apply(net, [], offloaded([Offload(["0"], "1")]))
        output = net(x)
        assert sorted(fake.sizes) == sorted([4 * 512 * 1024, 4 * 512 * 4096, 4 * 512 * 4096])
        del output


def test_where_nothing_is_gained_nothing_is_moved() -> None:
    assert host_copies.copies_of(torch.device("cpu")) is None
    assert host_copies.copies_of(torch.device("meta")) is None
    model, x = built("attention")
    assert_same(train_step(offloading(model, *ALL), (x,)), train_step(copy.deepcopy(model), (x,)), tolerance=0.0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", 1024)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("place", ["cpu", "gpu"])
def test_gradients_are_those_of_plain_training(request: pytest.FixtureRequest, place: str, name: str) -> None:
    device = request.getfixturevalue("gpu") if place == "gpu" else torch.device("cpu")
    model, x = built(name)
    model, x = model.to(device), x.to(device)
    net = offloading(model, *ALL)
    for _ in range(4):  # steps follow one another without a wait
        found = []
        for each in (model, model, net):
            each.load_state_dict(model.state_dict())
            found.append(gradients_of(each, x))
        if all(map(torch.equal, *found[:2])):  # the device repeats itself
            assert all(map(torch.equal, *found[1:]))
        for ours, theirs in zip(found[2], found[0], strict=True):
            torch.testing.assert_close(ours, theirs)


def gradients_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    """By a backward to all leaves, as checkpoints that are reentrant ask for."""
    torch.manual_seed(0)
    net.zero_grad(set_to_none=True)
    net(x.clone().requires_grad_()).square().sum().backward()
    return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]


def test_a_gpu_lets_go_and_uses_host_memory_again(gpu: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.Tanh()) for _ in range(8))).to(gpu)
    x = torch.randn(16384, 512, device=gpu)
    units = [(str(place), str(place + 1)) for place in range(7)]
    held = []
    for net in (model, offloading(model, *units)):
        for _ in range(3):
            torch.cuda.synchronize(gpu)
            before = torch.cuda.memory_allocated(gpu)
            output = net(x)
            held.append(torch.cuda.memory_allocated(gpu) - before)
            output.sum().backward()
            del output
            net.zero_grad(set_to_none=True)
    copies = host_copies.copies_of(gpu)
    assert copies is not None
    assert max(held[3:]) < min(held[:3]) / 2
    assert len(set(held[3:])) == 1  # decided by the order of the calls, not by what has been copied so far
    free = sum(map(len, copies._free.values()))
    offloading(model, *units)(x).sum().backward()
    assert sum(map(len, copies._free.values())) == free


def test_the_link_of_a_gpu_is_measured(gpu: torch.device) -> None:
    link = measured_link(gpu)
    assert link.to_host > 1e8
    assert link.to_device > 1e8
