"""The zoo's deeper models have the layers that they were asked for, and are otherwise the same networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from momentumnet.bench.zoo import timm_depths
from momentumnet.bench.zoo.entries import Entry, entries, missing

# Of transformers: modules that hold layers, and how many of 7 or more they have.
LAYERS: dict[str, dict[str, int]] = {
    "LlamaForCausalLM": {"model.layers": 7},
    "GPTNeoForCausalLM": {"transformer.h": 7},
    "Gemma4ForCausalLM": {"model.layers": 7},
    "BambaForCausalLM": {"model.layers": 7},
    "Zamba2ForCausalLM": {"model.layers": 7},
    "FunnelModel": {"encoder.blocks.0": 7, "encoder.blocks.1": 2},
    "T5Model": {"encoder.block": 7, "decoder.block": 7},
    "SwinModel": {"encoder.layers.0.blocks": 2, "encoder.layers.1.blocks": 7},
    "CLIPModel": {"text_model.encoder.layers": 7, "vision_model.encoder.layers": 7},
}


def _entry(library: str, name: str, layers: int) -> Entry:
    if missing([library]):
        pytest.skip(f"{library} is not installed")
    found = next((entry for entry in entries([library], layers=layers) if entry.name == name), None)
    return found or pytest.skip(f"the installed version of {library} has no {name}")


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_transformers(name: str) -> None:
    entry = _entry("transformers", name, 7)
    model = entry.build()
    assert {path: len(model.get_submodule(path)) for path in LAYERS[name]} == LAYERS[name]  # type: ignore[arg-type]
    assert entry.layers() == 7


@pytest.mark.parametrize("name", ["MobileViTModel", "LlamaForCausalLM"])
def test_models_that_stay_as_they_are(name: str) -> None:
    """One takes no number of layers; the other has four, and is asked for four."""
    assert _entry("transformers", name, 4).layers() is None


def _shapes(name: str, **settings: Any) -> dict[str, torch.Size]:
    timm = pytest.importorskip("timm")
    if name not in timm.list_models():
        pytest.skip(f"the installed version of timm has no {name}")
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, **settings)
    return {key: value.shape for key, value in model.state_dict().items()}


_NUMBERS = [(key, name) for key, names in timm_depths.KEYWORDS.items() for name in names]


@pytest.mark.parametrize(("keyword", "name"), _NUMBERS)
def test_numbers_of_timm_are_those_that_it_has(keyword: str, name: str) -> None:
    from momentumnet.bench.zoo.timm_models import FAMILIES

    settings = FAMILIES[name][1]
    assert _shapes(name, **settings) == _shapes(name, **{**settings, keyword: timm_depths.KEYWORDS[keyword][name]})


def test_a_deeper_resnet_of_timm() -> None:
    """As a ResNet-101 is made from a ResNet-50: the third stage alone grows."""
    model: Any = _entry("timm", "resnet50", 23).build()
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [3, 4, 23, 3]


@pytest.mark.parametrize("name", timm_depths.MEMBERS)
def test_deeper_members_are_as_wide(name: str) -> None:
    own, member, layers = timm_depths.MEMBERS[name]
    small, large = _shapes(name), _shapes(member)
    widest = {shape for shape in small.values() if len(shape) > 1}
    assert len(large) > len(small)
    assert own < layers
    assert widest <= {*large.values()}
    entry = _entry("timm", member, own + 1)
    assert entry.layers() == layers
