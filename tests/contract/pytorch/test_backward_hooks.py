"""Backward hooks of modules: PyTorch puts a function around what has some, and the trace is not to stumble over it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.streams.blocks.backward_hooks import backward_hooks_off
from tests.models import WIDTH, Chain, ResidualMLP

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"backward": "reversible", "gamma": 0.9},
    {"backward": "checkpointed"},
    {"coupling": "dr2net"},
    {"gamma": 1 / 8, "budget": "least"},
    {"gamma": 0, "budget": "least"},
)


def rows(batch: int = 8) -> Tensor:
    return torch.randn(batch, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Halved:
    """A hook that halves the gradient of its module's input, or of its output, and counts its calls."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def behind(self, module: nn.Module, of_input: tuple[Tensor], of_output: tuple[Tensor]) -> tuple[Tensor]:
        self.seen.append(of_output[0])
        return (of_input[0] / 2,)

    def before(self, module: nn.Module, of_output: tuple[Tensor]) -> tuple[Tensor]:
        self.seen.append(of_output[0])
        return (of_output[0] / 2,)

    def __deepcopy__(self, memo: object) -> Halved:
        return self


def hooked(place: str) -> tuple[nn.Module, Halved]:
    """A network whose blocks, or layers inside of them, have hooks."""
    torch.manual_seed(0)
    model, halved = Chain([ResidualMLP() for _ in range(6)]).double(), Halved()
    for block in model.blocks:
        if place == "before":
            block.register_full_backward_pre_hook(halved.before)
        else:
            (block if place == "block" else block.inner[0]).register_full_backward_hook(halved.behind)
    return model, halved


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("place", ["block", "layer", "before"])
def test_streams_are_found_and_hooks_see_what_they_would(place: str, options: dict[str, Any]) -> None:
    found = []
    rule = {name: value for name, value in options.items() if name in ("gamma", "coupling")}
    for given in (options, {**rule, "backward": "stored"}):
        model, halved = hooked(place)
        net, x = mn.convert(model, rows(), **given), rows().requires_grad_()
        assert not halved.seen  # neither the trace nor a trial is a step of the training
        net(x).square().mean().backward()
        found.append((halved.seen, [parameter.grad for parameter in net.parameters()], x.grad))
    (seen, *ours), (expected, *theirs) = found
    assert len(seen) == len(expected) == 6
    torch.testing.assert_close([seen, *ours], [expected, *theirs], rtol=1e-9, atol=1e-12)


def test_hooks_are_on_again_behind_a_trace() -> None:
    model, halved = hooked("block")
    before = [dict(block._backward_hooks) for block in model.blocks]
    mn.find_streams(model, rows())
    assert [dict(block._backward_hooks) for block in model.blocks] == before
    model(rows()).sum().backward()
    assert len(halved.seen) == 6


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hooks_of_all_modules_are_off_in_each_kind_of_conversion(options: dict[str, Any]) -> None:
    seen: list[nn.Module] = []
    behind = nn.modules.module.register_module_full_backward_hook(lambda module, *_: seen.append(module))
    before = nn.modules.module.register_module_full_backward_pre_hook(lambda module, _: seen.append(module))
    try:
        torch.manual_seed(0)
        model = Chain([ResidualMLP() for _ in range(6)]).double()
        net = mn.convert(model, rows(), **options)
        assert not seen
        net(rows().requires_grad_()).square().mean().backward()
        assert {type(module) for module in seen} >= {type(net), type(net.blocks[0]), nn.Linear}
        behind.remove()
        before.remove()
        seen.clear()
        net(rows().requires_grad_()).square().mean().backward()
        assert not seen
    finally:
        behind.remove()
        before.remove()


def test_hooks_of_parameters_are_off_meanwhile_and_on_again() -> None:
    model, _ = hooked("layer")
    seen: list[str] = []
    handles = [model.stem.weight.register_hook(lambda _, name=name: seen.append(name)) for name in ("first", "second")]
    mn.plan(model, rows(), budget="least")
    assert not seen
    model(rows()).sum().backward()
    assert seen == ["first", "second"]
    handles[0].remove()
    model(rows()).sum().backward()
    assert seen == ["first", "second", "second"]


class Hooking(nn.Module):
    """Hooks its weight in each forward, as networks do that weigh a gradient by what they have just seen."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.inner, self.seen = nn.Linear(WIDTH, WIDTH), seen

    def forward(self, x: Tensor) -> Tensor:
        self.inner.weight.register_hook(lambda _: self.seen.append("gradient"))
        self.inner.weight.register_post_accumulate_grad_hook(lambda _: self.seen.append("added"))
        y: Tensor = x + self.inner(x)
        return y


def test_hooks_that_a_traced_forward_leaves_on_parameters_are_gone() -> None:
    seen: list[str] = []
    model = nn.Sequential(*(Hooking(seen) for _ in range(3))).double()
    mn.find_streams(model, rows())
    mn.plan(model, rows(), budget="least")
    seen.clear()
    model(rows()).sum().backward()
    assert sorted(seen) == ["added"] * 3 + ["gradient"] * 3


@pytest.mark.parametrize("name", ["register_module_full_backward_hook", "register_module_full_backward_pre_hook"])
def test_hooks_of_all_modules_are_off_meanwhile_and_on_again(name: str) -> None:
    """PyTorch's global ones, as profilers of gradients take them."""
    model, x = Chain([ResidualMLP() for _ in range(6)]).double(), rows()
    seen: list[nn.Module] = []
    handle = getattr(nn.modules.module, name)(lambda module, *_: seen.append(module))
    try:
        assert len(mn.convert(model, x)(x)) == len(x)
        assert mn.plan(model, x, gamma=1 / 8, budget="least").streams
        assert not seen
        model(x.requires_grad_()).sum().backward()
        assert set(model.blocks) < set(seen)
    finally:
        handle.remove()
    seen.clear()
    model(x).sum().backward()
    assert not seen


def test_hooks_of_all_modules_come_back_behind_the_last_who_wants_them_off() -> None:
    """As where two threads look at a model each, and a third one hooks meanwhile."""
    hooks = nn.modules.module._global_backward_hooks
    register = nn.modules.module.register_module_full_backward_hook
    before = register(lambda *_: None)
    with backward_hooks_off(nn.Linear(1, 1)):
        with backward_hooks_off(nn.Linear(1, 1)):
            assert not hooks
            meanwhile = register(lambda *_: None)
        assert before.id not in hooks
    try:
        assert list(hooks) == [before.id, meanwhile.id]
    finally:
        before.remove()
        meanwhile.remove()
    assert not hooks


def test_a_model_that_is_hooked_and_planned_again_computes_the_same() -> None:
    model, x = Chain([ResidualMLP() for _ in range(6)]).double(), rows(64)
    budget = mn.plan(model, x, gamma=1 / 8, budget="least").peak * 5 // 4
    net = mn.convert(model, rows(), gamma=1 / 8, budget=budget, replan="auto")
    for block in net.blocks:
        block.register_full_backward_hook(lambda *_: None)
    expected = mn.convert(copy.deepcopy(model), x, gamma=1 / 8, backward="stored")(x)
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-12)
    assert mn.describe(net)["streams"]
