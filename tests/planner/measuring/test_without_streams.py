"""Networks without streams, within a budget: their large modules are divided, and checkpointed part by part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

import momentumnet as mn
from tests.models import WIDTH
from tests.planner.measuring.streamless import Added, Lstms, densenet, googlenet, images, peak_of, raw, shifting, vgg

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "vgg": (lambda: nn.Sequential(vgg()), images),
    "densenet": (densenet, images),
    "inception": (googlenet, images),
    "added": (Added, lambda: torch.randn(64, WIDTH)),
    "lstms": (Lstms, lambda: torch.randn(16, 64, WIDTH)),
    "raw": (raw, lambda: torch.randn(1024, WIDTH)),
    "shifting": (shifting, lambda: torch.randn(512, WIDTH)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_least_is_far_below_stored_activations_with_the_same_gradients(name: str) -> None:
    build, example = NETWORKS[name]
    torch.manual_seed(0)
    model, x = build(), example()
    found = mn.convert(model, x, budget="least")
    gradients = []
    for net in (model, found):
        torch.manual_seed(1)
        net.zero_grad()
        net(x).square().mean().backward()
        gradients.append([*(p.grad for p in net.parameters()), *net.buffers()])
    for got, expected in zip(*gradients, strict=True):
        assert torch.equal(got, expected)
    stored, least = (peak_of(lambda net=net: net(x), net) for net in (model, found))  # type: ignore[misc]
    assert least < 0.7 * stored


def test_the_least_is_that_of_the_best_segments_of_a_sequence() -> None:
    model, x = vgg(), images()
    counts = range(2, len(model))
    by_hand = min(
        peak_of(lambda count=count: checkpoint_sequential(model, count, x, use_reentrant=False), model)  # type: ignore[misc]
        for count in counts
    )
    whole = nn.Sequential(model)
    found = mn.convert(whole, x, budget="least")
    assert peak_of(lambda: found(x), found) <= by_hand


@pytest.mark.parametrize("name", NETWORKS)
def test_the_least_is_predicted(name: str) -> None:
    """A DenseNet's layers are given lists of tensors, of which nobody keeps any but those that recompute.

    The work space of convolutions is another one on each processor: an Inception's was met to 1 and to 6 %.
    """
    build, example = NETWORKS[name]
    model, x = build(), example()
    plan = mn.plan(model, x, budget="least", loss=lambda out: out.square().mean())
    found = mn.convert(model, plan=plan)
    assert plan.peak == pytest.approx(peak_of(lambda: found(x), found), rel=0.08)


class Given(nn.Module):
    """All of its modules are given a tensor that the model was given, and that nobody keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Branch() for _ in range(8))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, given)
        return x


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.tanh(x + given[0].mean(0)))))


def test_what_the_model_was_given_counts_nowhere() -> None:
    model, inputs = Given(), (torch.randn(256, 64), torch.randn(16, 200, 64))
    plan = mn.plan(model, inputs, budget="least", gamma=0, loss=lambda out: out.square().mean())
    found = mn.convert(model, plan=plan)
    least = peak_of(lambda: found(*inputs), found)
    assert plan.peak == pytest.approx(least, rel=0.05)
    assert least < 0.65 * peak_of(lambda: model(*inputs), model)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of_x, self.of_state = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        return torch.tanh(torch.sigmoid(self.of_x(x)) * torch.tanh(self.of_state(state)))


class Recurrent(nn.Module):
    """Calls one module again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, x: Tensor) -> Tensor:
        states = [torch.zeros_like(x[0])]
        for step in x:
            states.append(self.cell(step, states[-1]))
        return torch.stack(states[1:])


def test_modules_that_call_one_module_again_and_again_are_recomputed_whole() -> None:
    model, x = nn.Sequential(*[Recurrent() for _ in range(4)]), torch.randn(10, 32, 16)
    found = mn.convert(model, x, budget="least")
    assert peak_of(lambda: found(x), found) < 0.6 * peak_of(lambda: model(x), model)


def test_a_budget_between_the_two_is_met() -> None:
    model, x = densenet(), images()
    stored = peak_of(lambda: model(x), model)
    found = mn.convert(model, x, budget=int(0.7 * stored))
    assert peak_of(lambda: found(x), found) <= 0.7 * stored


@pytest.mark.parametrize("make", [mn.plan, mn.convert])
def test_a_gamma_that_nothing_moves_by_is_told(make: Callable[..., object], caplog: pytest.LogCaptureFixture) -> None:
    make(vgg(), images(), budget="least")
    make(vgg(), images(), budget="least", gamma=0)
    assert not caplog.text
    make(vgg(), images(), budget="least", gamma=1 / 2)
    assert caplog.text.count("no residual stream was found in Sequential, so that nothing moves by gamma=0.5") == 1


def test_a_plan_without_a_stream_says_no_gamma() -> None:
    plan = mn.plan(vgg(), images(), budget="least", gamma=1 / 2)
    assert plan.gamma == 0
    assert "gamma 0." in str(plan)
