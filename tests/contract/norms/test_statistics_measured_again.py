"""Norms whose recompute measures the batch again: their own code, or kernels that round otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import momentumnet as mn
from momentumnet.recompute.buffers import batch_statistics
from tests.contract.norms.normed_nets import WIDTH, Net, images, measured_in_backward, pair
from tests.contract.reference import assert_same, train_step


def test_types_that_round_otherwise_measure_again() -> None:
    torch.manual_seed(0)
    stored, recomputed = pair(Net(nn.BatchNorm2d).train().half(), images().half())
    assert_same(train_step(recomputed, (images().half(),)), train_step(stored, (images().half(),)), tolerance=0.0)
    assert measured_in_backward(recomputed, images().half()) == 7


class Doubling(nn.BatchNorm2d):
    """A norm with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Clamping(nn.BatchNorm2d):
    """Measures something else than what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-1, 1))


def changed_forward(width: int) -> nn.Module:
    norm = nn.BatchNorm2d(width)
    norm.forward = lambda x: 2 * nn.BatchNorm2d.forward(norm, x)
    return norm


class Noise(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.1 * torch.randn_like(weight)


def parametrized(width: int) -> nn.Module:
    norm = nn.BatchNorm2d(width)
    torch.nn.utils.parametrize.register_parametrization(norm, "weight", Noise())
    return norm


@pytest.mark.parametrize("build", [Doubling, Clamping, parametrized, changed_forward, nn.InstanceNorm2d])
def test_other_norms_measure_again(build: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model = Net(lambda width: build(width)).train()
    stored, recomputed = (mn.convert(model, images(), inplace=False, backward=b) for b in ("stored", "reversible"))
    if build is not changed_forward:  # a copy of which would call the norm that it was copied from
        assert_same(train_step(recomputed, (images(),)), train_step(stored, (images(),)), tolerance=0.0)
    assert measured_in_backward(recomputed, images()) == 6


def test_machine_that_rounds_otherwise_measures_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch_statistics._exact_kernels(torch.device("cpu"), torch.float32, torch.float32)
    monkeypatch.setattr(batch_statistics, "_exact_kernels", lambda *_: frozenset())
    torch.manual_seed(0)
    stored, recomputed = pair(Net(nn.BatchNorm2d).train(), images())
    assert_same(train_step(recomputed, (images(),)), train_step(stored, (images(),)), tolerance=0.0)
    assert measured_in_backward(recomputed, images()) == 7


def test_exactness_is_really_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_statistics, "_FOUND", {})
    exact = batch_statistics.normalised
    monkeypatch.setattr(batch_statistics, "normalised", lambda *args: exact(*args).nextafter(torch.tensor(9.0)))
    assert not batch_statistics._exact_kernels(torch.device("cpu"), torch.float32, torch.float32)


@pytest.fixture
def by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device whose norms have several kernels behind one name."""
    monkeypatch.setattr(batch_statistics, "_goes_by_size", lambda device: True)
    monkeypatch.setattr(batch_statistics, "_FOUND_AT_SIZES", {})


@pytest.mark.usefixtures("by_size")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_that_rounds_otherwise_at_one_size_measures_again(
    monkeypatch: pytest.MonkeyPatch, memory_format: torch.memory_format
) -> None:
    """As cuDNN's do, which takes another one for many channels that lie side by side."""
    exact = batch_statistics.normalised
    assert batch_statistics._exact_kernels(torch.device("cpu"), torch.float32, torch.float32)

    def otherwise(x: Tensor, *args: Any) -> Tensor:
        found = exact(x, *args)
        return found.nextafter(torch.tensor(9.0)) if x.shape[1] == WIDTH else found

    monkeypatch.setattr(batch_statistics, "normalised", otherwise)
    torch.manual_seed(0)
    x = images().contiguous(memory_format=memory_format)
    stored, recomputed = pair(Net(nn.BatchNorm2d).train(), x)
    assert_same(train_step(recomputed, (x,)), train_step(stored, (x,)), tolerance=0.0)
    assert measured_in_backward(recomputed, x) == 7


@pytest.mark.usefixtures("by_size")
def test_a_size_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, agrees = [], batch_statistics._agrees_on

    def noted(norm: nn.Module, x: Tensor, *rest: Any) -> bool:
        tried.append(x.shape)
        return agrees(norm, x, *rest)

    monkeypatch.setattr(batch_statistics, "_agrees_on", noted)
    _, recomputed = pair(Net(nn.BatchNorm2d).train(), images())
    for _ in range(2):
        assert measured_in_backward(recomputed, images()) == 0
    assert len(tried) == 1


@pytest.mark.usefixtures("by_size")
def test_a_size_that_could_not_be_tried_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, x = nn.BatchNorm2d(WIDTH), images()
    x[0, 0] = torch.nan  # of which both make the same bits
    assert _measured(norm, x) is not None
    monkeypatch.setattr(batch_statistics, "_can_be_tried", lambda device: False)
    assert _measured(norm, x) is not None
    assert _measured(norm, x.repeat(8, 1, 1, 1)) is None


def _measured(norm: nn.Module, x: Tensor) -> batch_statistics.Measured | None:
    saved: list[Tensor] = []
    with saved_tensors_hooks(saved.append, lambda _: pytest.fail("no backward")):
        output = norm(x)
    return batch_statistics._measured(norm, x, output, saved)


def test_what_warm_up_passes_have_found_holds_where_nothing_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while CUDA records a graph."""
    monkeypatch.setattr(batch_statistics, "_FOUND", {})
    _, recomputed = pair(Net(nn.BatchNorm2d).train(), images())
    batch_statistics._FOUND.clear()  # what the conversion has found
    for warm, expected in ((False, 7), (True, 0)):
        if warm:
            train_step(recomputed, (images(),))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch_statistics, "_can_be_tried", lambda device: False)
            patch.setattr(batch_statistics, "_trials", lambda *_: pytest.fail("tried"))
            assert measured_in_backward(recomputed, images()) == expected


def test_work_space_of_a_kernel_goes_with_its_statistics() -> None:
    """As cuDNN's norm has it: kept where it is small, and measured again where it is not."""
    norm, x = nn.BatchNorm2d(WIDTH), images()
    output = norm(x)
    mean, deviation = torch.zeros(WIDTH), torch.ones(WIDTH)
    for size, kept in ((0, True), (16 * WIDTH, True), (16 * WIDTH + 1, False)):
        saved = [x, norm.weight, mean, deviation, torch.zeros(size, dtype=torch.uint8)]
        named = _Named(output, "CudnnBatchNormBackward0")
        before, results = batch_statistics._cut(named, saved)
        assert [len(before), len(results)] == [2, 3]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batch_statistics, "_exact_kernels", lambda *_: {"CudnnBatchNormBackward0"})
            assert (batch_statistics._measured(norm, x, named, saved) is not None) == kept


class _Named:
    """An output whose graph node has another name."""

    def __init__(self, output: Tensor, name: str) -> None:
        self.grad_fn = self
        self.name = lambda: name
