"""transformers' caches with content, and generation."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import MomentumNetError
from tests.ecosystem.decoders import batch, decoder

transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")

PREFIX = 4


def converted(**options: Any) -> nn.Module:
    return mn.convert(decoder("LlamaForCausalLM"), batch(padded=False), **options)


def called_with(net: nn.Module, cache: Any) -> Any:
    """The model's output on a batch behind a prefix that ``cache`` holds."""
    name = "cache" if "cache" in inspect.signature(net.forward).parameters else "past_key_values"
    inputs = batch(padded=False)
    mask = torch.ones(2, PREFIX + inputs["input_ids"].shape[1], dtype=torch.long)
    return net(input_ids=inputs["input_ids"], attention_mask=mask, **{name: cache})


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_learnt_prefix(*, training: bool) -> None:
    """As prefix tuning has it: the cache holds keys and values that need a gradient."""
    gradients, lengths = [], []
    for backward in ("stored", "reversible"):
        net = converted(backward=backward).train(training)
        torch.manual_seed(2)
        prefix = torch.randn(4, 2, 2, 2, PREFIX, 8, requires_grad=True)
        cache = transformers.DynamicCache()
        for layer, (keys, values) in enumerate(2 * prefix):
            cache.update(keys, values, layer)
        called_with(net, cache).logits.square().mean().backward()
        gradients.append([prefix.grad, *(parameter.grad for parameter in net.parameters())])
        lengths.append(cache.get_seq_length())
    for stored, reversible in zip(*gradients, strict=True):
        torch.testing.assert_close(reversible, stored, rtol=1e-6, atol=1e-8)
    assert lengths[1] == (PREFIX if training else PREFIX + 12)


def test_a_static_cache_is_carried_or_refused() -> None:
    """Empty, its blocks make its tensors themselves; with content, they are written in place."""
    inputs = batch(padded=False)
    net = converted()
    name = "cache" if "cache" in inspect.signature(net.forward).parameters else "past_key_values"
    gradients = []
    for options in ({name: transformers.StaticCache(config=net.config, max_cache_len=64)}, {"use_cache": False}):
        net.zero_grad()
        net(**inputs, **options).logits.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    for with_cache, without in zip(*gradients, strict=True):
        torch.testing.assert_close(with_cache, without, rtol=1e-4, atol=1e-6)
    cache = transformers.StaticCache(config=net.config, max_cache_len=64)
    with torch.no_grad():
        net(input_ids=inputs["input_ids"][:, :PREFIX], **{name: cache})
    with pytest.raises(MomentumNetError, match=r"layers\.\d.*StaticCache.*use_cache=False"):
        called_with(net, cache).logits.square().mean().backward()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_generation_fills_its_cache(*, training: bool) -> None:
    net = converted().train(training)
    tokens: Tensor = batch(padded=False)["input_ids"]
    with torch.no_grad():
        output = net(input_ids=tokens, use_cache=True)
    held = next(value for value in output.values() if hasattr(value, "get_seq_length"))
    assert held.get_seq_length() == tokens.shape[1]
    sequences = [
        net.generate(tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert sequences[0].shape[1] == tokens.shape[1] + 6
    assert torch.equal(*sequences)
