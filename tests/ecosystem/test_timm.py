"""Networks of timm that keep something on themselves, or whose blocks make their skips in two ways."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import momentumnet as mn
from momentumnet.errors import MomentumNetWarning
from tests.contract.reference import assert_gradients_as_stored, assert_same, train_step

timm = pytest.importorskip("timm", reason="pip install 'momentumnet[timm]'")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ["levit_128s", "efficientvit_m0"])
def test_caches_of_attention_biases_are_left_as_found(name: str, *, training: bool) -> None:
    model: nn.Module = timm.create_model(name, num_classes=10).train(training)
    images = torch.randn(1, 3, 224, 224)
    mn.plan(model, images)
    held = [value for module in model.modules() for value in vars(module).get("attention_bias_cache", {}).values()]
    assert held == []
    copy.deepcopy(model)


def test_gated_and_additive_blocks_of_repvit() -> None:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("repvit_m0_9", num_classes=10).train()
    images = torch.randn(2, 3, 64, 64)
    plan = mn.plan(model, images)
    assert [row.blocks for row in plan.rows] == [3, 3, 15, 2]
    assert_gradients_as_stored(model, images, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "sizes", "where"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 4}, "VisionTransformer"),
        ("convnext_atto", {}, "stages.0"),
    ],
)
def test_checkpointing_of_converted_blocks_is_warned_of(name: str, sizes: dict[str, int], where: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **sizes).train()
    images = torch.randn(2, 3, 32, 32)
    model.set_grad_checkpointing()
    with pytest.warns(MomentumNetWarning) as warned:
        converted = mn.convert(model, images, backward="reversible")
    (warning,) = warned
    assert f"'{where}', around blocks of stream" in str(warning.message)
    assert "costs one more forward" in str(warning.message)
    stored = mn.convert(model, images, backward="stored")
    assert_same(train_step(converted, (images,)), train_step(stored, (images,)), tolerance=0.0)


def test_checkpointing_that_saves_memory_is_not_warned_of() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4).train()
    images = torch.randn(2, 3, 32, 32)
    mn.convert(model, images)
    model.set_grad_checkpointing()
    mn.convert(model, images, gamma=0)
    mn.convert(model, images, backward="stored")


def test_checkpointing_of_blocks_that_a_plan_recomputes_is_warned_of() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=6).train()
    images = torch.randn(24, 3, 32, 32)
    least = mn.plan(model, images, gamma=1 / 8, budget="least")
    plenty = mn.plan(model, images, gamma=1 / 8, budget="1GiB")
    model.set_grad_checkpointing()
    with pytest.warns(MomentumNetWarning, match="'VisionTransformer', around blocks of stream") as warned:
        mn.convert(model, plan=least)
    assert len(warned) == 1
    mn.convert(model, plan=plenty)  # keeps all
