from __future__ import annotations

import pytest
from torch import nn

from momentumnet.bench.networks.measured import CPU_NETWORKS, GPU_NETWORKS, NETWORKS, QUICK_NETWORKS


def test_lists_name_networks() -> None:
    assert {*CPU_NETWORKS, *GPU_NETWORKS, *QUICK_NETWORKS} <= set(NETWORKS)


def test_large_networks_stay_away_from_cpus() -> None:
    large = {name for name in NETWORKS if "-224" in name} | {"vit-l-16", "gpt-24", "llama-24", "llama-48"}
    assert not large & {*CPU_NETWORKS, *QUICK_NETWORKS}


@pytest.mark.parametrize(("name", "batch"), [("resnet50-224", 64), ("resnet50-224-256", 256), ("resnet152-224", 64)])
def test_images_of_resnets(name: str, batch: int) -> None:
    assert NETWORKS[name].example().shape == (batch, 3, 224, 224)


def test_head_of_a_vision_transformer_does_not_start_at_zero() -> None:
    model = NETWORKS["vit-12"].build()
    assert isinstance(model, nn.Module)
    assert model.get_parameter("heads.head.weight").abs().max() > 0
