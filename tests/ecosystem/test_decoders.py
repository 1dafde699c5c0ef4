"""Decoders of transformers with the library's defaults, whose blocks are given a key-value cache in training, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.memory import measure_memory
from tests.ecosystem.decoders import NAMES, batch, decoder, has

transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if not has(transformers, request.param):
        pytest.skip(f"transformers {transformers.__version__} has no {request.param}")
    return str(request.param)


@pytest.fixture(scope="module")
def nets(name: str) -> tuple[nn.Module, nn.Module]:
    """The decoder converted twice: stored and reversible."""
    model, example = decoder(name), batch(padded=False)
    return mn.convert(model, example, backward="stored"), mn.convert(model, example)


def step(net: nn.Module, inputs: dict[str, Tensor], **options: Any) -> Any:
    """Forward and backward; what the model returned, with the cache in it."""
    torch.manual_seed(3)
    output = net(**inputs, **options)
    output.logits.float().square().mean().backward()
    return output


def gradients(net: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    net.zero_grad()
    step(net, inputs)
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_gradients_are_those_of_stored_activations(nets: tuple[nn.Module, nn.Module], *, padded: bool) -> None:
    stored, reversible = nets
    expected, got = (gradients(net, batch(padded=padded)) for net in (stored, reversible))
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-8, msg=name)


def test_memory_is_that_of_a_call_without_a_cache(nets: tuple[nn.Module, nn.Module]) -> None:
    net = nets[1]
    step(net, batch(padded=False))  # leaves gradients, and a scale that is learnt
    default, without = (
        measure_memory(lambda options=options: step(net, batch(padded=False, length=48), **options))
        for options in ({}, {"use_cache": False})
    )
    assert default.peak_bytes <= 1.05 * without.peak_bytes
    assert default.saved_bytes <= 1.05 * without.saved_bytes
