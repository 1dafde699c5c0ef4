"""Blocks: which can go, and which go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import momentumnet as mn
from momentumnet.errors import PruningError
from momentumnet.prune import magnitude_scores
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.structured.block_search import DroppedBlock
from momentumnet.prune.structured.blocks import BlockStructure
from tests.prune.structured.block_nets import Block, masked, net_of, resnet_structure, vectors
from tests.prune.structured.structured_nets import images, network


def gone(structure: BlockStructure, masks: Masks) -> list[str]:
    """Blocks of which no parameter is kept."""
    blocks = [block for blocks in structure.streams.values() for block in blocks]
    return [
        block
        for block in blocks
        if not any(bool(mask.any()) for name, mask in masks.items() if name.startswith(f"{block}."))
    ]


def test_blocks_of_a_resnet() -> None:
    assert resnet_structure().streams == {
        "layer1": ("layer1.0", "layer1.1", "layer1.2"),
        "layer2": ("layer2.1", "layer2.2"),
        "layer3": ("layer3.1", "layer3.2"),
    }


def test_streams_of_one_container_are_streams_of_their_own() -> None:
    """Scope "layer" compared the blocks of both, so that all that went were the narrower one's."""
    net = nn.Sequential(*(Block() for _ in range(4)), nn.Linear(6, 3), *(Block(width=3) for _ in range(4))).double()
    structure = BlockStructure(net, vectors())
    first, second = "0 to 3", "5 to 8"
    assert structure.streams == {first: ("0", "1", "2", "3"), second: ("5", "6", "7", "8")}
    scores = {name: torch.full_like(p, 1 if int(name[0]) < 4 else 2) for name, p in net.named_parameters()}
    for fraction, expected in ((0.5, ["0", "1", "5", "6"]), ({first: 0, second: 0.25}, ["5"])):
        masks = structure.prune(scores, fraction=fraction, scope="layer")
        assert gone(structure, masks) == expected
        small, x = structure.shrink(net, masks), vectors()
        torch.testing.assert_close(small(x), masked(net, masks)(x))
    shuffled = structure.shuffle(structure.prune(scores, fraction=0.5), generator=torch.Generator().manual_seed(0))
    assert sorted(name < "4" for name in gone(structure, shuffled)) == [True] * 4


def test_a_pre_norm_encoder_reads_its_first_layer() -> None:
    structure = BlockStructure(network("pre_norm"), images(size=2))
    assert structure.streams == {"encoder.layers": ("encoder.layers.1",)}
    assert "self_attn" in structure.refused["encoder.layers.0"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("post-norm", "does not return its input"),
        ("factor", "does not return its input"),
        ("tuple", "it returns a tuple"),
    ],
)
def test_what_is_no_identity_is_refused(kind: str, reason: str) -> None:
    with pytest.raises(PruningError, match=rf"blocks\.0: .*{reason}"):
        BlockStructure(net_of(kind), vectors())


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_weights_that_are_computed_are_the_reason(norm: Any) -> None:
    """A norm or an activation after the sum was said to be it."""
    net = net_of("plain")
    for block in net.blocks:
        norm(block.fc)
    with pytest.raises(PruningError, match=r"blocks\.0: .*returns NaN \(a weight that is computed"):
        BlockStructure(net, vectors())


def test_relu_after_the_sum_is_an_identity_behind_another() -> None:
    structure = BlockStructure(net_of("relu"), vectors())
    assert structure.streams == {"blocks": ("blocks.1", "blocks.2")}
    assert "does not return its input" in structure.refused["blocks.0"]  # which may be negative


@pytest.mark.parametrize(("kind", "reason"), [("shared", "stem.weight"), ("read inside", "no attribute 'fc'")])
def test_a_block_that_others_need_is_refused(kind: str, reason: str) -> None:
    structure = BlockStructure(net_of(kind), vectors())
    assert structure.streams == {"blocks": ("blocks.0", "blocks.2")}
    assert reason in structure.refused["blocks.1"]


def test_one_module_called_again_goes_as_one() -> None:
    net = net_of("one module")
    structure = BlockStructure(net, vectors())
    assert structure.streams == {"blocks": ("blocks.0",)}
    masks = structure.prune(magnitude_scores(net), fraction=1.0)
    small = structure.shrink(net, masks)
    assert all(isinstance(block, DroppedBlock) for block in small.blocks)
    torch.testing.assert_close(small(vectors(1)), net.head(net.stem(vectors(1))))


def test_blocks_of_lowest_mean_magnitude_go() -> None:
    net = net_of("plain")
    for block, size in zip(net.blocks, (3.0, 1.0, 2.0), strict=True):
        nn.init.constant_(block.fc.weight, size)
    structure = BlockStructure(net, vectors())
    scores = magnitude_scores(net)
    first = structure.prune(scores, fraction=0.4)
    second = structure.prune(scores, fraction=0.5, previous=first)
    assert [gone(structure, masks) for masks in (first, second)] == [["blocks.1"], ["blocks.1", "blocks.2"]]
    assert first.keys() == {name for name, _ in net.named_parameters() if name.startswith("blocks.")}


@pytest.mark.parametrize(
    ("scope", "fraction", "numbers"),
    [("layer", 0.5, (2, 1, 1)), ("layer", {"layer1": 1, "layer2": 0, "layer3": 0.5}, (3, 0, 1))],
)
def test_number_in_each_stream(scope: str, fraction: Any, numbers: tuple[int, ...]) -> None:
    masks = resnet_structure().prune(magnitude_scores(network("resnet20")), fraction=fraction, scope=scope)
    found = gone(resnet_structure(), masks)
    assert tuple(sum(name.startswith(f"layer{n}") for name in found) for n in (1, 2, 3)) == numbers


@pytest.mark.parametrize(("fraction", "number"), [(0.1, 1), (0.5, 4), (0.9, 6)])
def test_number_in_all_streams(fraction: float, number: int) -> None:
    masks = resnet_structure().prune(magnitude_scores(network("resnet20")), fraction=fraction)
    assert len(gone(resnet_structure(), masks)) == number


def test_shuffled_masks_keep_the_numbers() -> None:
    structure = resnet_structure()
    masks = structure.prune(magnitude_scores(network("resnet20")), fraction=1 / 3, scope="layer")
    seen = set()
    for seed in range(12):
        other = structure.shuffle(masks, generator=torch.Generator().manual_seed(seed))
        names = gone(structure, other)
        assert [name.split(".")[0] for name in names] == ["layer1", "layer2", "layer3"]
        assert torch.equal(
            torch.tensor([mask.numel() for mask in other.values()]),
            torch.tensor([mask.numel() for mask in masks.values()]),
        )
        seen.add(tuple(names))
    assert len(seen) > 4  # of 12


def test_networks_without_blocks_are_refused() -> None:
    with pytest.raises(PruningError, match="no residual stream"):
        BlockStructure(nn.Sequential(nn.Linear(6, 6), nn.ReLU()).double(), vectors())


def test_converted_networks_are_refused() -> None:
    with pytest.raises(PruningError, match="revert"):
        BlockStructure(mn.convert(net_of("plain"), vectors()), vectors())


def test_masks_of_other_units_are_refused() -> None:
    net = net_of("plain")
    structure = BlockStructure(net, vectors())
    masks = structure.prune(magnitude_scores(net), fraction=1 / 3)
    with pytest.raises(ValueError, match=r"lack \['blocks.0.fc.weight'\]"):
        structure.shrink(net, {name: mask for name, mask in masks.items() if name != "blocks.0.fc.weight"})
    masks["blocks.0.fc.weight"] = torch.rand(6, 6) > 0.5
    with pytest.raises(ValueError, match="does not take away whole blocks"):
        structure.shrink(net, masks)


def test_scores_of_no_block_are_refused() -> None:
    net = net_of("plain")
    with pytest.raises(ValueError, match=r"scores hold none of block 'blocks.0'"):
        BlockStructure(net, vectors()).prune({"stem.weight": torch.ones(6, 6)}, fraction=0.5)
