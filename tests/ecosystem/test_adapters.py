"""Adapters of peft on converted decoders: gradients equal to stored, converted before the adapter or behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.ecosystem.decoders import batch, decoder

pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")
peft = pytest.importorskip("peft", reason="pip install peft")

TOKENS = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
ADAPTERS: dict[str, Callable[[], Any]] = {
    "prefix": lambda: peft.PrefixTuningConfig(**TOKENS),
    "projected prefix": lambda: peft.PrefixTuningConfig(**TOKENS, prefix_projection=True, encoder_hidden_size=16),
    "prompt": lambda: peft.PromptTuningConfig(**TOKENS),
    "LoRA": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"]),
    "DoRA": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], use_dora=True),
    "IA3": lambda: peft.IA3Config(task_type="CAUSAL_LM", target_modules=["v_proj"], feedforward_modules=[]),
}


def adapted(name: str, backward: str, *, first: bool) -> nn.Module:
    """A decoder with an adapter, converted before it was added (``first``) or behind that."""
    torch.manual_seed(0)
    model, config = decoder("LlamaForCausalLM"), ADAPTERS[name]()
    torch.manual_seed(1)
    if first:
        return peft.get_peft_model(mn.convert(model, batch(padded=False), backward=backward), config)
    return mn.convert(peft.get_peft_model(model, config), batch(padded=False), backward=backward)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    for parameter in net.parameters():  # adapters start at zero, where their other half has no gradient
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.1)
    torch.manual_seed(3)
    inputs = batch(padded=True)
    net.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("first", [True, False], ids=["converted first", "adapted first"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_of_adapters_are_those_of_stored_activations(name: str, *, first: bool) -> None:
    found, expected = (gradients(adapted(name, backward, first=first)) for backward in ("reversible", "stored"))
    assert found.keys() == expected.keys()
    assert found
    for parameter, gradient in expected.items():
        assert gradient.any(), parameter
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-6, atol=1e-8)
