"""Channels: which are found, and which go."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import momentumnet as mn
from momentumnet.errors import PruningError
from momentumnet.prune import magnitude_scores
from momentumnet.prune.structured.channels import ChannelStructure
from tests.prune.structured.channel_structures import channels_gone, halved, structure_of, two_layers
from tests.prune.structured.structured_nets import DECOYS, NETWORKS, Decoy, GatedMLP, images, network


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_those_written_by_hand(name: str) -> None:
    found = [(group.name, *group.normalisations, *group.consumers) for group in structure_of(name).groups]
    assert found == NETWORKS[name][1]


@pytest.mark.parametrize("kind", DECOYS)
def test_decoys_are_refused(kind: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(PruningError, match=f"conv1: .*({DECOYS[kind]})"):
        ChannelStructure(Decoy(kind), images(torch.float32))


def test_the_decoy_without_its_trap_is_found() -> None:
    assert [str(group) for group in ChannelStructure(Decoy("none"), images(torch.float32)).groups] == [
        "conv1 -> conv2: 8 channels"
    ]


def test_a_residual_stream_is_told_as_the_reason() -> None:
    refused = structure_of("bottleneck").refused
    assert "together with other layers' channels" in refused["1.conv3"]
    assert "reach the output" in refused["4.2"]


@pytest.mark.parametrize(
    ("scope", "fraction", "expected"),
    [
        ("global", 0.2, [[0, 1], [1, 1, 1]]),
        ("global", 0.4, [[0, 1], [0, 1, 1]]),
        ("global", 0.6, [[0, 1], [0, 0, 1]]),
        ("global", 1.0, [[0, 1], [0, 0, 1]]),  # the best one of each group stays
        ("layer", 0.5, [[0, 1], [0, 0, 1]]),
        ("layer", 0.0, [[1, 1], [1, 1, 1]]),
    ],
)
def test_which_channels_go(scope: str, fraction: float, expected: list[list[int]]) -> None:
    net, structure = two_layers()
    masks = structure.prune(magnitude_scores(net), fraction=fraction, scope=scope)
    first, second = (torch.tensor(kept, dtype=torch.bool) for kept in expected)
    by_hand = {
        "0.weight": first[:, None].expand(2, 2),
        "0.bias": first,
        "2.weight": second[:, None] & first[None],
        "2.bias": second,
        "4.weight": second[None].expand(2, 3),
    }
    assert masks.keys() == by_hand.keys()
    assert all(torch.equal(masks[name], by_hand[name]) for name in by_hand)


def test_next_one_goes_in_the_place_of_a_groups_best() -> None:
    net, structure = two_layers()
    with torch.no_grad():
        net[0].weight.mul_(0.01)  # both channels of this layer are the lowest of all
    masks = structure.prune(magnitude_scores(net), fraction=0.4)
    assert masks["0.bias"].tolist() == [False, True]
    assert masks["2.bias"].tolist() == [False, True, True]


def test_filters_compare_by_their_mean_over_what_is_left() -> None:
    net, structure = two_layers()
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([[9.0, 2.0], [9.0, 3.0], [0.0, 5.0]]))
    scores = magnitude_scores(net)
    previous = structure.prune(scores, fraction={"0": 0.5, "2": 0.0}, scope="layer")  # column 0 is gone
    masks = structure.prune(scores, fraction=0.25, previous=previous)
    assert masks["2.bias"].tolist() == [False, True, True]
    assert masks["0.bias"].tolist() == [False, True]


@pytest.mark.parametrize("fraction", [0.1, 0.35, 0.7])
def test_number_of_channels_is_exact(fraction: float) -> None:
    net = network("resnet20", torch.float32)
    structure = structure_of("resnet20", torch.float32)
    masks, left = None, 3 * (16 + 32 + 64)
    for _ in range(3):
        masks = structure.prune(magnitude_scores(net), fraction=fraction, previous=masks)
        left -= math.floor(round(fraction * 100) * left / 100 + 0.5)
        assert 336 - sum(channels_gone(structure, masks)) == max(left, 9)


def test_shuffled_masks_keep_the_numbers() -> None:
    net = network("resnet20", torch.float32)
    structure = structure_of("resnet20", torch.float32)
    masks = structure.prune(magnitude_scores(net), fraction=0.5)
    shuffled = [structure.shuffle(masks, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert all(torch.equal(shuffled[0][name], shuffled[1][name]) for name in masks)
    assert not all(torch.equal(shuffled[0][name], shuffled[2][name]) for name in masks)
    for other in shuffled:
        assert channels_gone(structure, other) == channels_gone(structure, masks)
        assert {name: int(mask.sum()) for name, mask in other.items()} == {
            name: int(mask.sum()) for name, mask in masks.items()
        }
        structure.shrink(net, other)  # whole channels


def test_gate_and_value_go_together() -> None:
    torch.manual_seed(0)
    net = GatedMLP()
    structure = ChannelStructure(net, images(torch.float32))
    masks = structure.prune(magnitude_scores(net), fraction=0.5)
    means = (net.gate.weight.abs().sum(1) + net.up.weight.abs().sum(1)).detach() / 96
    kept = means > means.sort().values[6]
    assert torch.equal(masks["gate.bias"], kept)
    assert torch.equal(masks["up.weight"].all(1), kept)
    assert torch.equal(masks["down.weight"].all(0), kept)


def test_the_model_stays_as_it_is() -> None:
    net = network("resnet20", torch.float32).train()
    net.layer1[0].eval()
    net.conv1.weight.requires_grad_(False)
    state, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    generator = torch.get_rng_state()
    structure = ChannelStructure(net, images(torch.float32))
    small = structure.shrink(net, structure.prune(magnitude_scores(net), fraction=0.5))
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags == [module.training for module in small.modules()]
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not small.conv1.weight.requires_grad
    assert small.linear.weight.requires_grad


def test_masks_on_the_model_do_not_hide_its_channels() -> None:
    structure, _, masked = halved("conv_net")
    assert list(map(str, ChannelStructure(masked, images()).groups)) == list(map(str, structure.groups))


def test_converted_networks_are_refused() -> None:
    x = images(torch.float32)
    with pytest.raises(PruningError, match="revert"):
        ChannelStructure(mn.convert(network("resnet20", torch.float32), x), x)


def test_masks_of_single_weights_are_refused() -> None:
    net, structure = two_layers()
    masks = structure.prune(magnitude_scores(net), fraction=0.2)
    masks["2.weight"][1, 1] = False
    with pytest.raises(ValueError, match=r"does not take away whole channels"):
        structure.shrink(net, masks)
    del masks["2.weight"]
    with pytest.raises(ValueError, match=r"'2.weight'"):
        structure.prune(magnitude_scores(net), fraction=0.2, previous=masks)


def test_masks_that_keep_no_channel_are_refused() -> None:
    net, structure = two_layers()
    masks = {name: torch.zeros_like(m) for name, m in structure.prune(magnitude_scores(net), fraction=0.2).items()}
    with pytest.raises(ValueError, match="keep no channel of '0'"):
        structure.shrink(net, masks)


def test_scores_that_are_missing_or_not_numbers_are_refused() -> None:
    net, structure = two_layers()
    scores = magnitude_scores(net)
    with pytest.raises(ValueError, match=r"scores lack '2.weight'"):
        structure.prune({"0.weight": scores["0.weight"]}, fraction=0.2)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        structure.prune({**scores, "0.weight": torch.ones(3)}, fraction=0.2)
    scores["0.weight"][1, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        structure.prune(scores, fraction=0.2)


def test_a_network_without_finite_outputs_is_refused() -> None:
    with pytest.raises(PruningError, match="NaN or infinite"):
        ChannelStructure(network("lenet_mlp", torch.float32), torch.full((1, 3, 4, 4), torch.nan))
