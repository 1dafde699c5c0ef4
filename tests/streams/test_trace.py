"""A trace leaves no mark, and takes example inputs in every documented form."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from momentumnet.conversion.conversion import convert
from momentumnet.conversion.planning import plan
from momentumnet.errors import ConversionError
from momentumnet.planner.fit import measured_step
from momentumnet.streams import discover, find_streams
from momentumnet.streams.tracing import recorder, trace
from momentumnet.streams.tracing.trace import call_with_example, record
from tests.streams import nets
from tests.streams.nets import WIDTH, Block, Calls, chain, loop, modules, summary, tokens


def state_of(model: nn.Module) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "tensors": [(id(tensor), tensor.requires_grad) for tensor in [*model.parameters(), *model.buffers()]],
        "gradients": [parameter.grad for parameter in model.parameters()],
        "values": [tensor.detach().clone().tolist() for tensor in [*model.parameters(), *model.buffers()]],
    }


def test_the_model_is_left_as_found():
    model = nn.Sequential(nets.Counting(), nets.Counting(), nn.BatchNorm1d(5), nn.Dropout())
    model.train()
    model[0].eval()
    model[1].linear.weight.requires_grad_(False)
    model[0].register_forward_hook(lambda module, args, output: None)
    x = tokens().requires_grad_()
    before, generator, values = state_of(model), torch.get_rng_state(), x.detach().clone()
    assert len(find_streams(model, x)) == 1
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(x, values)
    assert x.requires_grad
    assert x.grad is None


def test_the_model_is_left_as_found_after_an_exception():
    def forward(self, x):
        self.layers(x)
        raise RuntimeError("from the forward")

    model = Calls(forward, layers=nn.Sequential(nets.Counting(), nets.Counting()))
    x = tokens()
    before, generator = state_of(model), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="from the forward"):
        find_streams(model, x)
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_an_overridden_train_method_is_not_called():
    class Merging(Block):
        def train(self, mode=True):
            raise AssertionError("train has side effects here")

    model = Calls(loop, layers=modules(2, Merging))
    assert len(find_streams(model, tokens())) == 1
    assert model.training


def test_the_callers_tensors_are_not_written_to():
    model = Calls(lambda self, x, y: self.layers(x.mul_(2.0) + y["shift"].add_(1.0)), layers=chain(2))
    x, shift = tokens(), tokens()
    copies = x.clone(), shift.clone()
    assert len(find_streams(model, (x, {"shift": shift}))) == 1
    assert torch.equal(x, copies[0])
    assert torch.equal(shift, copies[1])
    assert not x.requires_grad


def test_an_exception_that_a_block_catches_does_not_confuse_the_trace():
    def fails(self, x):
        raise ValueError("no")

    def forward(self, x):
        try:
            return self.fragile(x)
        except ValueError:
            return x + self.linear(x)

    blocks = [
        Calls(forward, fragile=Calls(lambda self, x: self.inner(x), inner=Calls(fails)), linear=nn.Linear(WIDTH, WIDTH))
        for _ in range(2)
    ]
    (stream,) = find_streams(nn.Sequential(*blocks), tokens())
    assert stream.blocks == ("0", "1")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_scripted_module_beside_the_blocks_is_passed_over():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(5)))
    assert summary(nn.Sequential(scripted, chain(2)), tokens()) == [("1", 2, "additive")]
    assert scripted.training


def test_everything_is_dropped_at_the_end():
    references = []
    model = Calls(loop, layers=modules(3))
    model.layers[1].register_forward_hook(lambda module, args, output: references.append(weakref.ref(output)))
    gc.disable()
    try:
        found = discover(model, tokens())
        assert len(found.streams) == 1
        assert [reference() for reference in references] == [None]
    finally:
        gc.enable()


def test_call_with_example():
    def forward(self, *args, **kwargs):
        return args, kwargs

    model, x = Calls(forward), torch.zeros(1)
    assert call_with_example(model, x) == ((x,), {})
    assert call_with_example(model, [x, x]) == (([x, x],), {})
    assert call_with_example(model, (x, None)) == ((x, None), {})
    assert call_with_example(model, {"x": x}) == ((), {"x": x})
    with pytest.raises(ConversionError, match="of type str; expected a tensor"):
        call_with_example(model, "image")


@pytest.mark.parametrize(
    "view", [lambda x: x[:, 1:], lambda x: x.transpose(0, 1).transpose(0, 1), lambda x: x.view_as(x)]
)
def test_a_view_that_is_taken_without_gradients(view):
    """It says that it requires a gradient, and has no function that would give one."""

    class View(nn.Module):
        def forward(self, x):
            return view(x)

    def forward(self, x):
        x = self.stem(x)
        with torch.no_grad():
            offset = self.view(x)
        return self.layers(x) + offset.mean()

    model = Calls(forward, stem=nn.Linear(WIDTH, WIDTH), view=View(), layers=chain(3))
    assert [len(stream) for stream in find_streams(model, tokens())] == [3]


def test_the_looks_of_a_trace_are_hidden_from_its_function_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were most of what the modes saw, and most of the time that a trace took."""
    seen: list[str] = []

    class Counting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(trace, "fresh_dropout_outputs", Counting)
    record(nn.Sequential(*[Block() for _ in range(3)]), tokens())
    assert seen[seen.index("linear") :] == 3 * ["linear", "tanh", "add"]


def test_values_are_looked_at_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(recorder, "_largest_magnitude", lambda tensor: looks.append(tensor.shape) or 1.0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, example = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 3, 8)
    saved = record(model, example).saved_bytes()
    assert looks
    looks.clear()
    trace = record(model, example, values=False)
    assert not looks
    assert trace.saved_bytes() == saved
    assert {call.spread for call in trace.root.walk()} == {1.0}


def test_planning_looks_at_values_in_one_of_its_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(recorder, "_largest_magnitude", lambda tensor: looks.append(tensor.shape) or 1.0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, example = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 3, 8)
    find_streams(model, example)
    once = len(looks)
    measured_step(model, example, gamma=Fraction(1, 8))
    assert len(looks) == 2 * once


@pytest.mark.parametrize("look", [find_streams, convert, plan, partial(plan, budget="least")])
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_pair_of_a_loader_is_told_to_be_one(look: Callable[..., Any], kind: type) -> None:
    pair = kind([torch.randn(3, 4), torch.zeros(3)])
    with pytest.raises(TypeError, match=r"a (list|tuple) of two: .* give the inputs alone: inputs, targets = next"):
        look(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), pair)
    with pytest.raises(TypeError, match=r"^(?!.*inputs alone)"):
        look(nn.Sequential(nn.Linear(4, 4)), ["a"])
