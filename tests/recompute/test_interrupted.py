"""A key that is pressed while something is put in place for a block call: all is put back."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import nn

import momentumnet as mn
from momentumnet.core.state.exact_state import ExactState
from momentumnet.errors import ReconstructionError
from momentumnet.recompute.attributes.left_attributes import Attributes
from momentumnet.recompute.buffers import norm_calls, statistics_read
from momentumnet.recompute.buffers.buffers_on_demand import kept_on_demand
from momentumnet.recompute.saved import collected_tensors
from momentumnet.recompute.surroundings import choices
from momentumnet.recompute.surroundings.generators import Generators
from momentumnet.recompute.surroundings.stand_in import StandIn
from momentumnet.recompute.surroundings.switches import Switches


class _Pressed:
    """Raises at the nth line that a piece of code, or what it calls in momentumnet, comes to."""

    def __init__(self, code: CodeType, number: int) -> None:
        self.code, self.left, self.found = code, number, ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        inside: FrameType | None = frame
        while inside is not None and inside.f_code is not self.code:
            inside = inside.f_back
        return None if inside is None else self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        # A `with` comes to its line again in front of its end, where a real key is not seen.
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith("with "):
            self.left -= 1
            if not self.left:
                self.found = f"{frame.f_code.co_name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self._line


def pressed_everywhere(make: Callable[[], AbstractContextManager[Any]]) -> Iterator[str]:
    """Enter a context again and again; each time a key is pressed one line later, until it is entered."""
    for number in range(1, 1000):
        context = make()
        pressed = _Pressed(context.gen.gi_code, number)  # type: ignore[attr-defined]
        outside = sys.gettrace()
        sys.settrace(pressed)
        try:
            with context:
                sys.settrace(outside)
                return
        except KeyboardInterrupt:
            yield pressed.found
        finally:
            sys.settrace(outside)


def norm() -> nn.BatchNorm1d:
    return nn.BatchNorm1d(4)


def test_how_norms_are_called() -> None:
    norms = [norm(), norm()]
    for place in pressed_everywhere(lambda: norm_calls.through(norms, lambda module, x: x)):
        assert not norm_calls._RUNNING.stack, place
        assert not norm_calls._REPLACED, place
        assert all("forward" not in vars(module) for module in norms), place


def test_who_looks_on() -> None:
    original = nn.Module.__getattr__
    for place in pressed_everywhere(lambda: statistics_read.reads_noted([norm()], set())):
        assert not statistics_read._WATCHES.stack, place
    for place in pressed_everywhere(lambda: choices._under([])):
        assert not choices._CALLS.stack, place
    assert nn.Module.__getattr__ is original
    with pytest.raises(KeyboardInterrupt):
        collected_tensors.watched(_press)
    assert not collected_tensors.WATCHERS.stack


def _press() -> None:
    raise KeyboardInterrupt


def test_what_stands_in() -> None:
    class Owner:
        @staticmethod
        def function() -> str:
            return "own"

    stand_in = StandIn(Owner, "function", lambda: "other")
    for place in pressed_everywhere(stand_in.standing):
        assert Owner.function() == "own", place


def test_tables_of_buffers() -> None:
    module = norm()
    for place in pressed_everywhere(lambda: kept_on_demand([module, norm()], lambda: None)):
        assert type(module._buffers) is dict, place


def test_attributes() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.total = 0, torch.zeros(())

    module = Counter()
    attributes = Attributes(module, [module])
    module.calls, module.total = 1, torch.ones(())
    attributes.forget_unchanged()
    for place in pressed_everywhere(attributes.replayed):
        assert (module.calls, float(module.total)) == (1, 1.0), place


def test_generators_and_switches() -> None:
    generators, switches = Generators(torch.device("cpu")), Switches()
    torch.rand(3)
    state = torch.get_rng_state()
    for place in pressed_everywhere(generators.replayed):
        assert torch.equal(torch.get_rng_state(), state), place
    torch.set_default_dtype(torch.float64)
    try:
        for place in pressed_everywhere(switches.replayed):
            assert torch.get_default_dtype() == torch.float64, place
    finally:
        torch.set_default_dtype(torch.float32)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.layer(x))


def test_a_state_that_was_left_between_two_steps_is_not_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    net = mn.convert(nn.Sequential(*[Block() for _ in range(4)]), x, backward="reversible")
    loss = net(x).square().sum()
    undo, calls = ExactState.undo, []

    def pressed(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        undo(*args, **kwargs)

    monkeypatch.setattr(ExactState, "undo", pressed)
    with pytest.raises(KeyboardInterrupt):
        loss.backward(retain_graph=True)
    with pytest.raises(ReconstructionError, match=r"interrupted .* run forward again"):
        loss.backward(retain_graph=True)
    net(x).square().sum().backward()
