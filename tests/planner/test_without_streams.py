"""Networks without streams, within a budget: their large modules are divided, and checkpointed part by part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.models import DenseNet
from torchvision.models.googlenet import Inception

import momentumnet as mn
from momentumnet.memory import measure_memory
from tests.models import WIDTH, ResidualMLP


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 16, 16)


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(8):
        layers += [nn.Conv2d(8 if place else 3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers)


def densenet() -> nn.Module:
    return DenseNet(4, (4, 4), num_init_features=8, num_classes=4, drop_rate=0.1)


def googlenet() -> nn.Module:
    return nn.Sequential(nn.Sequential(*[Inception(8 if place else 3, 2, 2, 2, 2, 2, 2) for place in range(6)]))


class Added(nn.Module):
    """Residual blocks, behind each of which the parent adds something, as YOLOS does: each stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[ResidualMLP(WIDTH, 6 * WIDTH) for _ in range(8)])
        self.added = nn.Parameter(torch.randn(8, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for block, added in zip(self.blocks, self.added, strict=True):
            x = block(x) + added
        return x


class Shifting(nn.Module):
    """Overwrites its argument, as a module may that adds positions."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(WIDTH))
        self.inner = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.GELU(), nn.Linear(8 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x += self.shift
        return self.inner(x)


def shifting() -> nn.Module:
    return nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), Shifting())])


class Lstms(nn.Module):
    """Its layers have no children."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return x


class Raw(nn.Module):
    """Nor has this one, which computes with its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Parameter(torch.randn(WIDTH, 8 * WIDTH) / 4)
        self.leave = nn.Parameter(torch.randn(8 * WIDTH, WIDTH) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ self.enter) @ self.leave


def raw() -> nn.Module:
    return nn.Sequential(*[Raw() for _ in range(6)])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "vgg": (lambda: nn.Sequential(vgg()), images),
    "densenet": (densenet, images),
    "inception": (googlenet, images),
    "added": (Added, lambda: torch.randn(64, WIDTH)),
    "lstms": (Lstms, lambda: torch.randn(16, 64, WIDTH)),
    "raw": (raw, lambda: torch.randn(1024, WIDTH)),
    "shifting": (shifting, lambda: torch.randn(512, WIDTH)),
}


def peak_of(call: Callable[[], Tensor], model: nn.Module) -> int:
    def step() -> None:
        call().square().mean().backward()

    step()
    model.zero_grad(set_to_none=True)
    return measure_memory(step).peak_bytes


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


class Overwrites(nn.Module):
    """Begins by overwriting what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(torch.relu_(x) + 1.0)))


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Overwrites() for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x * 1.0)
        return x


def test_modules_that_overwrite_their_input_are_recomputed_within_their_parent() -> None:
    model, x = nn.Sequential(nn.Linear(16, 16), Parent()), torch.randn(64, 16)
    found = mn.convert(model, x, budget="least")
    gradients = []
    for net in (model, found):
        net.zero_grad()
        net(x).square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_budget_between_the_two_is_met() -> None:
    model, x = densenet(), images()
    stored = peak_of(lambda: model(x), model)
    found = mn.convert(model, x, budget=int(0.7 * stored))
    assert peak_of(lambda: found(x), found) <= 0.7 * stored


class InTraining(Shifting):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x += self.shift
        return self.inner(x)


class Reentrant(Shifting):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x + self.shift, use_reentrant=True)


class OfLoss(torch.autograd.Function):
    """Wants the gradient of a loss, and not what stands in its place where a part is measured by itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if bool((gradient == 1).all()):
            raise TypeError("expected what a loss hands on")
        return gradient


class WantsLoss(Shifting):
    def forward(self, x: Tensor) -> Tensor:
        return OfLoss.apply(self.inner(x + self.shift))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (InTraining, "'?1'? .*it overwrites what it takes"),
        (Reentrant, "use_reentrant=True; take F"),
        (WantsLoss, r"it raised TypeError there \(expected what .*\); convert without a budget"),
    ],
)
def test_what_cannot_be_measured_by_itself_is_said(kind: type[nn.Module], message: str) -> None:
    model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), kind())])
    with pytest.raises(mn.ConversionError, match=message):
        mn.convert(model, torch.randn(64, WIDTH), budget="least")


class Remembering(nn.Module):
    """Goes on from what its last call has left, with its gradient, unless that was of another batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.GELU(), nn.Linear(8 * WIDTH, WIDTH))
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        left, self.state = self.state, y
        return y if left is None else y + 0.0 * left.mean()


class Forgetting(nn.Sequential):
    """Begins anew in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            layer.state = None
        return super().forward(x)


def test_what_a_measured_part_leaves_on_attributes_is_not_for_the_next_run() -> None:
    model, x = Forgetting(*[Remembering() for _ in range(6)]), torch.randn(512, WIDTH)
    found = mn.convert(model, x, budget="least")
    for net in (model, found):
        net.zero_grad()
        net(x).square().mean().backward()
    assert all(map(torch.equal, *([p.grad for p in net.parameters()] for net in (model, found))))


class OfSeveral(Shifting):
    """Overwrites one of the tensors in a list."""

    def forward(self, given: list[Tensor]) -> Tensor:  # type: ignore[override]
        given[1] += self.shift
        return self.inner(given[0] + given[1])


class Listing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OfSeveral() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer([x, 2 * x])
        return x


def test_tensors_in_lists_that_are_overwritten() -> None:
    model, x = Listing(), torch.randn(512, WIDTH)
    found = mn.convert(model, x, budget="least")
    for net in (model, found):
        net(x).square().mean().backward()
    assert all(map(torch.equal, *([p.grad for p in net.parameters()] for net in (model, found))))
    assert peak_of(lambda: found(x), found) < 0.6 * peak_of(lambda: model(x), model)


class OverwritingRaw(Raw):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


def test_a_module_without_children_that_overwrites_its_argument_is_stored() -> None:
    layers = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), OverwritingRaw())]
    model, x = nn.Sequential(*layers, *[Raw() for _ in range(4)]), torch.randn(512, WIDTH)
    plan = mn.plan(model, x, budget="least")
    found = mn.convert(model, plan=plan)
    recomputed = {name for names in mn.describe(found)["recomputed"] for name in names}
    assert recomputed
    assert recomputed <= {"8", "9", "10", "11"}
    for net in (model, found):
        net(x).square().mean().backward()
    assert all(map(torch.equal, *([p.grad for p in net.parameters()] for net in (model, found))))


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
