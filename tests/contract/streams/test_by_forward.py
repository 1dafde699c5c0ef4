"""Blocks of which the parent calls the ``forward``, as SqueezeBERT's encoder does, past ``__call__`` and its hooks."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.recompute.surroundings.choices import recomputing
from momentumnet.streams import discover
from tests.models import WIDTH, ResidualMLP

EXAMPLE = torch.randn(16, 5, WIDTH)


class Block(ResidualMLP):
    """A block that takes more than the stream's tensor, and counts its calls."""

    calls = 0

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        Block.calls += not recomputing()
        return super().forward(x) if shift is None else super().forward(x) + scale * shift


class Parent(nn.Module):
    """Calls the forward of its blocks, and of modules behind them."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh(), nn.Linear(32, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        shift = x.mean(-1, keepdim=True)
        x = self.stem(x)
        for block in self.blocks:
            x = block.forward(x, 0.5, shift=shift)
        return torch.cat([head.forward(x) for head in self.heads], -1)


def gradients(net: nn.Module, x: Tensor = EXAMPLE) -> list[Tensor]:
    torch.manual_seed(1)
    net.zero_grad()
    net(x).square().mean().backward()
    return [p.grad for p in net.parameters()]


OPTIONS = [
    {},
    {"gamma": 0.9},
    {"others": "checkpoint"},
    {"gamma": 0.5, "backward": "checkpointed"},
    {"coupling": "bdia"},
    {"gamma": 0.9, "budget": "least"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_are_those_of_stored_activations_in_less_memory(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Parent().double()
    x = EXAMPLE.double()
    found = mn.convert(model, x, **options)
    kept = {key: value for key, value in options.items() if key in ("gamma", "coupling")}
    stored = mn.convert(model, x, backward="stored", **kept)
    for got, expected in zip(gradients(found, x), gradients(stored, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    held = [mn.measure_memory(lambda net=net: net(x)).saved_bytes for net in (found, stored)]  # type: ignore[misc]
    assert held[0] < 0.9 * held[1]


def test_each_block_runs_once_in_forward() -> None:
    found = mn.convert(Parent(), EXAMPLE)
    Block.calls = 0
    gradients(found)
    assert Block.calls == 4


def test_a_network_of_gamma_0_is_what_it_was() -> None:
    model = Parent()
    plan = mn.plan(model, EXAMPLE, gamma=0, budget="least")
    assert "checkpointed" in {unit.way for unit in plan.units if unit.stream == "blocks"}
    assert {"blocks.0", "blocks.3", "heads.0", "heads.1"} <= {name for unit in plan.units for name in unit.names}
    found = mn.convert(model, plan=plan)
    for got, expected in zip(gradients(found), gradients(model), strict=True):
        assert torch.equal(got, expected)


class Caller(Parent):
    """The same network, which calls its blocks."""

    def forward(self, x: Tensor) -> Tensor:
        shift = x.mean(-1, keepdim=True)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, 0.5, shift=shift)
        return torch.cat([head(x) for head in self.heads], -1)


@pytest.mark.parametrize("gamma", [0, 0.9])
def test_its_plan_is_that_of_the_network_that_calls_its_blocks(gamma: float) -> None:
    least = mn.plan(Caller(), EXAMPLE, gamma=gamma, budget="least").peak
    plans = [mn.plan(model, EXAMPLE, gamma=gamma, budget=least + 2000) for model in (Parent(), Caller())]
    assert plans[0].measured_peak is not None
    for value in ("peak", "measured_peak", "stored_peak", "held"):
        assert len({getattr(plan, value) for plan in plans}) == 1


def test_blocks_that_are_called_twice() -> None:
    class Twice(Parent):
        def forward(self, x: Tensor) -> Tensor:
            for block in (*self.blocks, *self.blocks):
                x = block.forward(x)
            return x

    (stream,) = mn.find_streams(Twice(), EXAMPLE)
    assert len(stream) == 8


def test_blocks_that_take_their_stream_behind_another_argument() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, mask: Tensor, x: Tensor) -> Tensor:
            return x + mask * torch.tanh(self.inner(x))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Behind() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            mask, x = torch.ones(1), x.detach()  # neither has a gradient by which the stream could be seen
            for layer in self.layers:
                x = layer.forward(mask, x)
            return x

    (stream,) = mn.find_streams(Net(), EXAMPLE)
    assert stream.arguments == (1, 1, 1)


def test_the_same_network_again(tmp_path: Path) -> None:
    model = Parent()
    found = mn.convert(model, EXAMPLE, others="checkpoint")
    description = mn.describe(found)
    assert description["by_forward"] == ["blocks.0", "blocks.1", "blocks.2", "blocks.3", "heads.0", "heads.1"]
    like = mn.convert(model, like=json.loads(json.dumps(description)))
    mn.load_training_state(like, mn.training_state(found))
    for net in (like, copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert mn.describe(net) == description
        for got, expected in zip(gradients(net), gradients(found), strict=True):
            assert torch.equal(got, expected)
    mn.plan(model, EXAMPLE, gamma=0.9, budget="least").save(tmp_path / "plan.json")
    planned = mn.convert(model, plan=mn.TrainingPlan.load(tmp_path / "plan.json"))
    assert mn.describe(planned)["by_forward"][:4] == description["by_forward"][:4]


def test_revert_gives_back_what_it_was() -> None:
    model = Parent()
    reverted = mn.revert(mn.convert(model, EXAMPLE, others="checkpoint"))
    assert {type(module) for module in reverted.modules()} == {type(module) for module in model.modules()}
    assert torch.equal(reverted(EXAMPLE), model(EXAMPLE))


def test_its_signature_stays_and_a_call_of_the_block_goes_through_the_stream_too() -> None:
    model = Parent()
    found = mn.convert(model, EXAMPLE)
    assert inspect.signature(found.blocks[0].forward) == inspect.signature(model.blocks[0].forward)

    def called(net: nn.Module) -> Tensor:
        x = net.stem(EXAMPLE)
        for block in net.blocks:
            x = block(x)
        return x

    torch.testing.assert_close(called(found), called(mn.convert(model, EXAMPLE, backward="stored")))
    held = mn.measure_memory(lambda: called(found)).saved_bytes
    assert held < 0.5 * mn.measure_memory(lambda: called(model)).saved_bytes


def test_masks_on_a_block_leave_it_what_it_is() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

        def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
            return x + torch.tanh(x @ self.weight)

    model = Parent()
    model.blocks = nn.ModuleList(Weighted() for _ in range(4))
    found = mn.convert(model, EXAMPLE)
    description = mn.describe(found)
    whole = torch.ones(WIDTH, WIDTH, dtype=torch.bool)
    mn.prune.apply_masks(found, {f"blocks.{index}.weight": whole for index in range(4)})
    assert mn.describe(found) == description
    mn.prune.remove_masks(found)
    assert mn.describe(found) == description
    assert torch.equal(found(EXAMPLE), mn.convert(model, EXAMPLE)(EXAMPLE))


class Again(Block):
    """Its forward calls itself."""

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None, inner: bool = False) -> Tensor:
        return super().forward(x, scale, shift=shift) if inner else self.forward(x, scale, shift=shift, inner=True)


def test_a_block_whose_forward_calls_itself() -> None:
    model = Parent().double()
    model.blocks = nn.ModuleList(Again() for _ in range(4)).double()
    x = EXAMPLE.double()
    found, stored = (mn.convert(model, x, gamma=0.9, backward=backward) for backward in ("reversible", "stored"))
    for got, expected in zip(gradients(found, x), gradients(stored, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_parent_that_looks_at_the_forward_sees_a_method_of_its_signature() -> None:
    class Looks(Parent):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                assert inspect.ismethod(block.forward)
                assert list(inspect.signature(block.forward).parameters) == ["x", "scale", "shift"]
                x = block.forward(x)
            return x

    assert len(mn.find_streams(Looks(), EXAMPLE)) == 1


def test_hooks_of_the_blocks_are_passed_over_as_they_were() -> None:
    def raises(*_: object) -> None:
        raise AssertionError

    model = Parent()
    handles = [block.register_forward_pre_hook(raises) for block in model.blocks]
    handles += [block.register_forward_hook(raises) for block in model.blocks]
    assert len(mn.find_streams(model, EXAMPLE)) == 1
    mn.plan(model, EXAMPLE, budget="least")
    gradients(mn.convert(model, EXAMPLE))
    for handle in handles:
        handle.remove()
    assert not model.blocks[0]._forward_hooks


def test_it_is_exported() -> None:
    found = mn.convert(Parent(), EXAMPLE).eval()
    exported = torch.export.export(found, (EXAMPLE,), strict=False).module()
    torch.testing.assert_close(exported(EXAMPLE), found(EXAMPLE))
    with pytest.raises(Exception, match="pass strict=False"):
        torch.export.export(found, (EXAMPLE,), strict=True)


def test_a_forward_that_somebody_has_put_there_stays() -> None:
    model = Parent()
    for block in model.blocks:
        block.forward = block.forward
    found = discover(model, EXAMPLE)
    assert not found.streams
    assert not found.by_forward & {"blocks.0", "blocks.1"}
    assert all(block.forward is block.__dict__["forward"] for block in model.blocks)


def test_the_model_is_left_as_it_was_found() -> None:
    model = Parent()
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    assert [stream.path for stream in discover(model, EXAMPLE).streams] == ["blocks"]
    mn.plan(model, EXAMPLE, budget="least")
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("fault", [{"by_forward": "blocks.0"}, {"by_forward": []}, {"by_forward": ["nobody"]}])
def test_a_description_that_names_what_is_not_there_is_refused(fault: dict[str, Any]) -> None:
    model = Parent()
    description = {**mn.describe(mn.convert(model, EXAMPLE)), **fault}
    with pytest.raises(mn.ConversionError, match=r"list of their names|no module 'nobody'"):
        mn.convert(model, like=description)
