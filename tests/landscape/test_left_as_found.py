"""A measurement changes nothing of the model, also when it ends in an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import momentumnet as mn
from momentumnet.landscape import (
    filter_normalised_direction,
    hessian_top_eigenvalues,
    loss_along,
    loss_plane,
    sharpness,
)
from momentumnet.streams.blocks.converted import streams_of
from tests.init.networks import network
from tests.models import Chain, ResidualMLP

Measure = Callable[..., Any]


def along(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any, **options: Any) -> Any:
    return loss_along(model, loss_fn, batch, filter_normalised_direction(model), distances=[-1, 20, 0], **options)


def plane(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any, **options: Any) -> Any:
    return loss_plane(model, loss_fn, batch, points=2, **options)


def radius(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any, **options: Any) -> Any:
    return sharpness(model, loss_fn, batch, 5.0, steps=3, **options)


def curvature(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any, **options: Any) -> Any:
    return hessian_top_eigenvalues(model, loss_fn, batch, tolerance=1.0, **options)


MEASURES = [radius, curvature, along, plane]


class Remembering(nn.Module):
    """Keeps its last activations on itself, as some networks do, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = spectral_norm(nn.Linear(3, 4))
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.tanh(self.norm(self.linear(x)))
        return self.last


def prepared(name: str) -> tuple[nn.Module, Any]:
    """A model in training mode but for one module, with gradients and a batch."""
    if name == "remembering":
        torch.manual_seed(2)
        model: nn.Module = nn.Sequential(Remembering(), nn.Dropout(0.2), nn.Linear(4, 4))
        batch: Any = torch.randn(6, 3), torch.randint(4, (6,))
    else:
        model, batches = network(name)
        batch = batches[0]
    inputs = batch[0] if isinstance(batch[0], dict) else {}
    loss = F.cross_entropy(model(**inputs) if inputs else model(batch[0]), batch[1])
    loss.backward()
    list(model.modules())[-1].training = False
    return model, batch


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "identities": {name: id(tensor) for name, tensor in tensors.items()},
        "versions": {name: p._version for name, p in model.named_parameters()},
        "gradients": {name: (id(p.grad), p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "attributes": [dict(module.__dict__) for module in model.modules()],
        "magnitudes": [stream._scale._magnitude for stream in streams_of(model)],
        "weights of recurrent layers": [
            [id(weight) for weight in module._flat_weights] for module in model.modules() if isinstance(module, nn.LSTM)
        ],
        "generator": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(before: Any, after: Any, path: str = "") -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys(), path
        for key in before:
            assert_same(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after), path
        for index, (b, a) in enumerate(zip(before, after, strict=True)):
            assert_same(b, a, f"{path}/{index}")
    elif isinstance(before, Tensor):
        assert torch.equal(before, after), path
    else:
        assert before is after or before == after, path


@pytest.mark.parametrize("name", ["remembering", "dropout", "lstm", "embedding", "converted", "momentum_net"])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("chunk", [None, 2])
def test_after_a_measurement(name: str, measure: Measure, chunk: int | None) -> None:
    model, batch = prepared(name)
    before = snapshot(model)
    measure(model, F.cross_entropy, batch, chunk=chunk)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("name", ["remembering", "lstm", "converted"])
@pytest.mark.parametrize("measure", MEASURES)
def test_after_an_error_in_the_middle(name: str, measure: Measure) -> None:
    model, batch = prepared(name)
    calls = []

    def failing(output: Tensor, target: Tensor) -> Tensor:
        calls.append(output)
        if len(calls) == 3:
            torch.rand(1)
            raise KeyboardInterrupt
        return F.cross_entropy(output, target)

    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        measure(model, failing, batch, chunk=2)
    assert len(calls) == 3
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("measure", MEASURES)
def test_without_gradients_around_it(measure: Measure) -> None:
    model, batch = prepared("converted")
    expected = measure(model, F.cross_entropy, batch)
    with torch.no_grad():
        found = measure(model, F.cross_entropy, batch)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(getattr(found, "losses", found), getattr(expected, "losses", expected), rtol=0, atol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_between_forward_and_backward(measure: Measure) -> None:
    """A converted network recomputes in backward, on parameters and buffers that have to be as forward saw them."""
    gradients = []
    for measured in (True, False):
        model, (inputs, target) = prepared("converted")
        model.zero_grad()
        loss = F.cross_entropy(model(inputs), target)
        if measured:
            measure(model, F.cross_entropy, (inputs, target))
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_same(*gradients)


def test_streams_learn_no_scale_from_far_away(caplog: pytest.LogCaptureFixture) -> None:
    """The scale of the exact state is kept: training goes on with the bits that it would have had."""
    torch.manual_seed(0)
    model = mn.convert(Chain([ResidualMLP() for _ in range(3)]), torch.randn(2, 16))
    x = torch.randn(4, 16)
    before = model(x)
    with torch.no_grad():
        loss = before.square().mean()
    with caplog.at_level("INFO", logger="momentumnet"):
        found = sharpness(model, lambda y, _: y.square().mean(), (x, None), 1e3, steps=3)
    assert "values outgrew the scale" in caplog.text
    assert found > loss
    assert torch.equal(model(x), before)
