"""A trace sees batch norms as they are in training, so that the scale that is chosen fits the first step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import momentumnet as mn
from momentumnet.streams.finding.discover import find_streams

WIDTH = 6


class NormBlock(nn.Module):
    """x + norm(W x)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), norm

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.linear(x))


def stack(make: Callable[[], nn.Module] = lambda: nn.BatchNorm1d(WIDTH)) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*[NormBlock(make()) for _ in range(3)])


def set_statistics(model: nn.Module, *, variance: float) -> None:
    """Running statistics that have nothing to do with the batch."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_var.fill_(variance)


def magnitude_of(model: nn.Module, x: Tensor) -> float:
    (stream,) = find_streams(model, x)
    return stream.magnitude


def in_training(model: nn.Module, x: Tensor) -> float:
    """The largest value that passes along the stack in training, by a loop of its own."""
    sizes = [float(x.abs().max())]
    for block in model.train():
        x = block(x).detach()
        sizes.append(float(x.abs().max()))
    return max(sizes)


@pytest.mark.parametrize("variance", [1e-4, 1.0, 1e8])
@pytest.mark.parametrize("training", [True, False])
def test_a_first_training_step_teaches_nothing_of_the_magnitude(
    variance: float, training: bool, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model, images = resnet18(num_classes=5), torch.randn(8, 3, 64, 64)
    set_statistics(model, variance=variance)
    net = mn.convert(model.train(training), images)
    before = mn.training_state(net)
    with caplog.at_level("INFO", logger="momentumnet"):
        net.train()(images).square().mean().backward()
    assert not caplog.records
    learned = mn.training_state(net)
    for stream in learned["streams"].values():
        stream["scale"]["once"] = None  # there has been a pass, which has asked for nothing
    assert learned == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm1d(WIDTH),
        lambda: nn.BatchNorm1d(WIDTH, momentum=None, affine=False),
        lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False),
        lambda: nn.SyncBatchNorm(WIDTH),
    ],
)
def test_what_is_measured_is_what_training_sees(make: Callable[[], nn.Module]) -> None:
    model, x = stack(make), torch.randn(16, WIDTH)
    set_statistics(model, variance=1e6)
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):  # trains on GPUs alone
        assert magnitude_of(model, x) == pytest.approx(in_training(stack(), x))
    else:
        assert magnitude_of(model, x) == pytest.approx(in_training(model, x))


def test_instance_norms_with_running_statistics() -> None:
    model, x = stack(lambda: nn.InstanceNorm1d(4, track_running_stats=True)), torch.randn(2, 4, WIDTH)
    set_statistics(model, variance=1e6)
    assert magnitude_of(model, x) == pytest.approx(in_training(model, x))


def test_running_statistics_are_neither_moved_nor_touched() -> None:
    model, x = stack(), torch.randn(16, WIDTH)
    set_statistics(model, variance=3.0)
    before = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    mn.convert(model, x, inplace=True)
    now = list(model.buffers())
    for (buffer, version, values), found in zip(before, now, strict=True):
        assert found is buffer
        assert found._version == version
        assert torch.equal(found, values)


def test_norms_that_are_frozen_in_a_model_that_trains_stay_frozen() -> None:
    model, x = stack().train(), torch.randn(16, WIDTH)
    set_statistics(model, variance=1e-6)
    loose = magnitude_of(model, x)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    frozen = [module.training for module in model.modules()]
    with torch.no_grad():
        y, sizes = x, [float(x.abs().max())]
        for block in model:
            y = block(y)
            sizes.append(float(y.abs().max()))
    assert magnitude_of(model, x) == pytest.approx(max(sizes))
    assert magnitude_of(model, x) > 100 * loose
    assert [module.training for module in model.modules()] == frozen


def test_one_value_for_a_channel_is_nothing_to_measure() -> None:
    model, x = stack(), torch.randn(1, WIDTH)
    with torch.no_grad():
        y, sizes = x, [float(x.abs().max())]
        for block in model.eval():
            y = block(y)
            sizes.append(float(y.abs().max()))
    assert magnitude_of(model, x) == pytest.approx(max(sizes))
    images = torch.randn(1, 3, 32, 32)  # the last stage of a ResNet has one pixel then
    assert len(find_streams(resnet18(), images)) == 1
