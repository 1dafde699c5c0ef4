"""Saved tensors in host memory: the same gradients to the bit, copied once, gone meanwhile, back in time."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import momentumnet as mn
from momentumnet.core.offload import Offload
from momentumnet.planner.host_link import measured_link
from momentumnet.recompute import host_copies, offloaded_tensors
from momentumnet.streams.converted import converted_blocks
from momentumnet.streams.roles import apply, offloaded
from tests.contract.reference import assert_same, train_step
from tests.recompute.late_copies import LateCopies, planted


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[LateCopies]:
    with planted(monkeypatch) as late:
        yield late


class Images(nn.Module):
    """Channels last, a tensor that is changed in place, views of one storage, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.convolution(x)), inplace=True)
        first, second, third = y.chunk(3, dim=1)
        y = torch.cat([first.sigmoid() * second, third, second.transpose(2, 3).transpose(2, 3).exp()], dim=1)
        return x + self.out(functional.dropout(y, 0.3))


class Attention(nn.Module):
    """Queries, keys and values as views of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Checkpointing(nn.Module):
    """Recomputes its inside itself."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = Attention(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.tanh(), use_reentrant=self.reentrant).exp()


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (Images, (4, 3, 8, 8)),
    "attention": (Attention, (4, 6, 16)),
    "lstm": (lambda: First(nn.LSTM(16, 16, batch_first=True)), (4, 6, 16)),
    "checkpoint": (lambda: Checkpointing(reentrant=False), (4, 6, 16)),
    "reentrant checkpoint": (lambda: Checkpointing(reentrant=True), (4, 6, 16)),
}


class First(nn.Module):
    """What a module returns first."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


def built(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """Four modules in a row."""
    torch.manual_seed(0)
    build, shape = MODULES[name]
    x = torch.randn(shape, dtype=dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return nn.Sequential(*(build() for _ in range(4))).to(dtype), x


def offloading(model: nn.Module, *units: tuple[str, str | None]) -> nn.Module:
    """A copy of which these modules are offloaded, until the one behind."""
    net = copy.deepcopy(model)
    apply(net, [], offloaded(Offload([name], behind) for name, behind in units))
    return net


ALL = ("0", "1"), ("1", "2"), ("2", "3"), ("3", None)


@pytest.mark.parametrize("units", [ALL, ALL[1:2], (ALL[0], ALL[2])], ids=["all", "one", "every second"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODULES)
def test_gradients_are_those_of_plain_training(
    copies: LateCopies, name: str, dtype: torch.dtype, units: tuple[tuple[str, str | None], ...]
) -> None:
    model, x = built(name, dtype)
    expected = train_step(copy.deepcopy(model), (x,))
    net = offloading(model, *units)
    for _ in range(2):  # in the second step host memory is used again
        net.load_state_dict(model.state_dict())
        net.zero_grad()
        assert_same(train_step(net, (x,)), expected, tolerance=0.0)
    assert copies.sent
    assert "fetch" in {what for what, _ in copies.log} or name == "checkpoint"


@pytest.mark.parametrize("name", ["images", "attention"])
def test_under_autocast(copies: LateCopies, name: str) -> None:
    model, x = built(name)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = (train_step(net, (x,)) for net in (copy.deepcopy(model), offloading(model, *ALL)))
    assert_same(got, expected, tolerance=0.0)
    assert copies.sent


class Wave(nn.Module):
    """Keeps its input, something inside, and its output."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin().exp().sigmoid()


def waves(count: int = 4) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(Wave() for _ in range(count))), torch.randn(32, 16, requires_grad=True)


def test_the_device_lets_go_when_the_unit_behind_has_run(copies: LateCopies) -> None:
    model, x = waves()
    found: list[list[int]] = []
    net = offloading(model, ("1", "2"))
    for layer in net:
        layer.register_forward_hook(lambda *_: found.append(copies.on_the_device))
    output = net(x)
    # Storage 0 is the input of unit 1, which unit 0 keeps; 1 is inside; 2 the output, which unit 2 keeps.
    assert found == [[], [0, 1, 2], [0, 1, 2], [0, 2]]
    assert copies.log == [("send", 0), ("send", 1), ("send", 2)][: len(copies.sent)]
    output.sum().backward()
    assert [what for what in copies.log if what[0] == "fetch"] == [("fetch", 1)]


def test_units_in_a_row_leave_one_by_one_and_share_what_they_share(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, *ALL[:3])
    output = net(x)
    assert len(copies.sent) == 4 + 3  # x, and of each unit what it has inside and what it returns, once
    # What the third one returned was returned to the last one, which keeps it; x is the caller's.
    assert copies.on_the_device == [0, 6]
    output.sum().backward()
    order = [number for what, number in copies.log if what == "fetch"]
    assert order == sorted(order, reverse=True)
    assert len(order) == 5


def test_what_backward_needs_next_comes_while_the_unit_behind_goes_back(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, ("1", "2"))
    seen: list[tuple[str, int]] = []
    hidden = net[:2](x)
    output = net[2](hidden)
    hidden.register_hook(lambda _: seen.append(copies.log[-1]))  # the gradient leaves unit 2
    output.sum().backward()
    assert seen == [("fetch", 1)]


def test_host_memory_is_used_again(copies: LateCopies) -> None:
    model, x = built("images")
    net = offloading(model, *ALL)
    counts = []
    for _ in range(3):
        net(x).sum().backward()
        counts.append(len(copies.buffers))
    assert counts[0] == counts[1] == counts[2] > 0


def test_host_memory_of_a_forward_without_backward_is_given_back(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, *ALL)
    for _ in range(3):
        net(x)
        count = len(copies.buffers)
    net(x).sum().backward()
    assert len(copies.buffers) == count == len(set(copies.buffers))


def test_what_leaves_with_nobody_behind_does_not_pile_up(copies: LateCopies) -> None:
    model, x = waves(1)
    net = offloading(model, ("0", None))
    first = net(x)
    second = net(x)  # lets go of the first pass
    torch.stack([first.sum(), second.sum()]).sum().backward()
    assert ("fetch", 1) in copies.log
    assert torch.equal(x.grad, 2 * torch.autograd.grad(model(x).sum(), x)[0])


@pytest.mark.parametrize("smallest", [1024, 1 << 20], ids=["moved", "kept"])
def test_what_nobody_needs_any_more_is_gone_at_once(
    copies: LateCopies, monkeypatch: pytest.MonkeyPatch, smallest: int
) -> None:
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", smallest)
    net = offloading(nn.Sequential(nn.Sigmoid(), nn.Tanh()), ("0", "1"), ("1", None))
    output = net(torch.randn(32, 32, requires_grad=True))
    storage = StorageWeakRef(output.untyped_storage())
    gc.disable()
    try:
        del output
        assert storage.expired()
    finally:
        gc.enable()


@pytest.mark.parametrize("retained", [False, True])
def test_two_passes_and_two_backwards(copies: LateCopies, retained: bool) -> None:
    model, x = built("attention")
    plain, net = copy.deepcopy(model), offloading(model, *ALL)
    for each in (plain, net):
        losses = [each(scale * x).sum() for scale in (1, 2)]
        for loss in losses:
            loss.backward(retain_graph=retained)
        for loss in losses if retained else ():
            loss.backward()
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_backward_that_is_differentiated_again(copies: LateCopies) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))).double()
    x = torch.randn(64, 16, dtype=torch.float64)
    found = []
    for net in (model, offloading(model, *ALL)):
        given = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(given).square().sum(), given, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), [given, *net.parameters()], allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    assert copies.sent


def test_gradients_of_a_part_do_not_fetch_the_rest(copies: LateCopies) -> None:
    model, x = built("attention")
    net = offloading(model, *ALL[:3])
    weight = net[3].out.weight
    torch.autograd.grad(net(x).sum(), weight)  # no gradient comes out of the last module
    assert ("fetch", 0) not in copies.log


class InPlace(nn.Module):
    """Changes a tensor that was saved."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        y = x.sigmoid()
        self.change(y)
        return y * 2


@pytest.mark.parametrize(
    "change",
    [lambda y: y.mul_(2), lambda y: y[0].zero_(), lambda y: y.detach().add_(1), lambda y: y.t().add_(1)],
    ids=["itself", "view", "detached", "transposed"],
)
@pytest.mark.parametrize("smallest", [1024, 1 << 20], ids=["moved", "kept"])
def test_a_change_in_place_is_found_where_plain_autograd_finds_it(
    copies: LateCopies, monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], object], smallest: int
) -> None:
    monkeypatch.setattr(offloaded_tensors, "SMALLEST", smallest)
    model = nn.Sequential(InPlace(change), nn.Identity())
    x = torch.randn(32, 32, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(x).sum().backward()
    net = offloading(model, ("0", "1"))
    with pytest.raises(mn.ReconstructionError, match=r"'0': a tensor of shape \(32, 32\) .* changed in place"):
        net(x).sum().backward()


def test_a_change_between_two_savings_keeps_both(copies: LateCopies) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1.5
            first = torch.zeros(()).requires_grad_() * y.detach()  # saves y as it is now
            copies.end()  # and the device is quick to copy it
            y.add_(1)
            return y.sin() + first.detach()

    model = nn.Sequential(Twice(), nn.Identity())
    x = torch.randn(32, 32, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    (got,) = torch.autograd.grad(offloading(model, ("0", "1"))(x).sum(), x)
    assert torch.equal(got, expected)


def test_a_weight_that_was_changed_is_found(copies: LateCopies) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    x = torch.randn(64, 32, requires_grad=True)
    net = offloading(model, ("0", "1"))
    output = net(x)
    with torch.no_grad():
        net[0].weight.mul_(2)
    with pytest.raises(mn.ReconstructionError, match=r"shape \(32, 32\).*changed in place"):
        output.sum().backward()


def test_parameters_buffers_and_small_tensors_stay(copies: LateCopies) -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64))
            self.register_buffer("mask", torch.rand(8, 64))
            self.small = nn.Parameter(torch.randn(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            return ((x @ self.weight.t()[:, :64]) * self.mask * self.small.exp()).sin()

    net = offloading(nn.Sequential(Weighted(), nn.Identity()), ("0", "1"))
    net(torch.randn(8, 64)).sum().backward()
    assert len(copies.sent) == 3  # x, what the small one is multiplied with, and what the sine is of


def test_an_input_that_others_hold_stays(copies: LateCopies) -> None:
    model, x = waves(2)
    sent = []
    for input_stays in (False, True):
        net, before = copy.deepcopy(model), len(copies.sent)
        apply(net, [], offloaded([Offload(["0"], "1", input_stays=input_stays)]))
        net(x).sum().backward()
        sent.append(len(copies.sent) - before)
    assert sent == [3, 2]


class Looking(torch.autograd.Function):
    """Shows what comes back to backward."""

    found: ClassVar[list[Tensor]] = []

    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        ctx.save_for_backward(given)
        return given.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Looking.found[:] = ctx.saved_tensors
        return gradient


@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 4, 16, 16).contiguous(memory_format=torch.channels_last), torch.randn(40, 40).t()],
    ids=["channels last", "transposed"],
)
def test_layout_comes_back(copies: LateCopies, x: Tensor) -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Looking.apply((x * 2)[:, 1:3])

    net = offloading(nn.Sequential(Parts(), nn.Identity()), ("0", "1"))
    net(x.requires_grad_()).sum().backward()
    like, (found,) = (2 * x)[:, 1:3].detach(), Looking.found
    assert found.untyped_storage().nbytes() == like.untyped_storage().nbytes()
    assert (found.stride(), found.storage_offset()) == (like.stride(), like.storage_offset())
    assert torch.equal(found, like)
    Looking.found.clear()


def test_without_gradients_nothing_is_moved(copies: LateCopies) -> None:
    model, x = waves()
    net = offloading(model, *ALL)
    with torch.no_grad():
        net(x)
    with torch.inference_mode():
        net(x)
    torch.func.grad(lambda given: net(given).sum())(x.detach())
    assert not copies.sent


def test_copies_and_pickles_hold_no_memory(copies: LateCopies) -> None:
    model, x = built("attention")
    net = offloading(model, *ALL)
    net(x).sum().backward()
    file = io.BytesIO()
    torch.save(net, file)
    plain = io.BytesIO()
    torch.save(model, plain)
    assert len(file.getvalue()) < len(plain.getvalue()) + 4096
    file.seek(0)
    expected = train_step(copy.deepcopy(model), (x,))
    for again in (torch.load(file, weights_only=False), copy.deepcopy(net)):
        before = len(copies.sent)
        again.zero_grad(set_to_none=True)
        assert_same(train_step(again, (x,)), expected, tolerance=0.0)
        assert len(copies.sent) > before
    assert not list(converted_blocks(mn.revert(net)))


def test_compiled_blocks(copies: LateCopies) -> None:
    model, x = built("attention")
    expected = train_step(copy.deepcopy(model), (x,))
    net = offloading(model, *ALL)
    for layer in net:
        layer.compile(backend="aot_eager")
    assert_same(train_step(net, (x,)), expected, tolerance=1e-6)
    assert copies.sent


def test_host_memory_is_kept_by_sizes_of_four_to_a_doubling() -> None:
    sizes = {host_copies._class_of(count) for count in range(1 << 10, 1 << 11)}
    assert sizes == {1024, 1280, 1536, 1792, 2048}
    assert all(count <= host_copies._class_of(count) <= 1.25 * count for count in range(4, 5000))


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
def test_gradients_on_a_gpu_are_those_of_plain_training(gpu: torch.device, name: str) -> None:
    model, x = built(name)
    model, x = model.to(gpu), x.to(gpu)
    net = offloading(model, *ALL)
    for _ in range(4):  # steps follow one another without a wait
        found = []
        for each in (model, model, net):
            torch.manual_seed(0)
            each.load_state_dict(model.state_dict())
            found.append(torch.autograd.grad(each(x).square().sum(), list(each.parameters())))
        if all(map(torch.equal, *found[:2])):  # the device repeats itself
            assert all(map(torch.equal, *found[1:]))
        for ours, theirs in zip(found[2], found[0], strict=True):
            torch.testing.assert_close(ours, theirs)


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
