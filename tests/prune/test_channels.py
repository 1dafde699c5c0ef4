"""Channels: which are found, which go, and that the smaller network is the masked one."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import PruningError
from momentumnet.prune import apply_masks, magnitude_scores, masks_of
from momentumnet.prune.channels import ChannelStructure
from momentumnet.prune.masks import Masks
from momentumnet.prune.places import places_by_name
from tests.prune.structured_nets import DECOYS, NETWORKS, Decoy, GatedMLP, images, network

LABELS = torch.arange(6) % 5


@functools.cache
def structure_of(name: str, dtype: torch.dtype = torch.float64) -> ChannelStructure:
    return ChannelStructure(network(name, dtype), images(dtype, size=2))


def halved(name: str, dtype: torch.dtype = torch.float64) -> tuple[ChannelStructure, Masks, nn.Module]:
    """The structure, masks on half of the channels, and the network with these masks."""
    structure, net = structure_of(name, dtype), network(name, dtype)
    masks = structure.prune(magnitude_scores(net), fraction=0.5)
    apply_masks(net, masks)
    return structure, masks, net


def backward(net: nn.Module, x: Tensor) -> Tensor:
    net.train()
    net.zero_grad()
    loss = F.cross_entropy(net(x), LABELS)
    loss.backward()
    return loss


def channels_gone(structure: ChannelStructure, masks: Masks) -> list[int]:
    """By the rows of the producers' weights."""
    rows = [masks[f"{group.producers[0]}.weight"].flatten(1).any(1) for group in structure.groups]
    return [int((~row).sum()) for row in rows]


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


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_equals_masked(name: str, trained: bool) -> None:
    net = network(name)
    structure, masks, masked = halved(name)
    if trained:  # statistics and weights move with the masks on
        optimizer = torch.optim.SGD(masked.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
        for seed in (1, 2):
            backward(masked, images(seed=seed))
            optimizer.step()
    small = structure.shrink(masked, masks)

    masked.eval(), small.eval()
    torch.testing.assert_close(small(images(seed=3)), masked(images(seed=3)), rtol=1e-12, atol=1e-12)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert removed > 0
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in net.parameters()) - removed
    assert not masks_of(small)
    assert [(n, type(m)) for n, m in small.named_modules()] == [(n, type(m)) for n, m in net.named_modules()]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet18"])  # which is large
def test_shrunk_equals_masked_in_single_precision(name: str) -> None:
    structure, masks, masked = halved(name, torch.float32)
    small = structure.shrink(masked, masks).eval()
    masked.eval()
    torch.testing.assert_close(small(images(torch.float32)), masked(images(torch.float32)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_kept_entries(name: str) -> None:
    structure, masks, masked = halved(name)
    small = structure.shrink(masked, masks)
    x = images(seed=1)

    loss, smaller_loss = backward(masked, x), backward(small, x)

    torch.testing.assert_close(smaller_loss, loss, rtol=1e-12, atol=1e-12)
    before = {key: found[0].parameter for key, found in places_by_name(masked).items()}
    assert before.keys() == dict(small.named_parameters()).keys()
    for key, parameter in small.named_parameters():
        gradient = before[key].grad
        assert gradient is not None
        # Masks are whole rows and columns, so what they keep, in order, has the smaller shape.
        kept = gradient[masks[key]].view(parameter.shape) if key in masks else gradient
        torch.testing.assert_close(parameter.grad, kept, rtol=1e-9, atol=1e-12)
    statistics = {key: value for key, value in masked.named_buffers() if "running" in key}
    for key, value in small.named_buffers():
        if "running" in key:
            mask = masks.get(key.rpartition(".")[0] + ".weight", torch.ones(1, dtype=torch.bool))
            torch.testing.assert_close(value, statistics[key][mask.expand_as(statistics[key])], rtol=1e-9, atol=1e-12)


def test_a_residual_stream_is_told_as_the_reason() -> None:
    refused = structure_of("bottleneck").refused
    assert "together with other layers' channels" in refused["1.conv3"]
    assert "reach the output" in refused["4.2"]


def test_layers_say_their_new_sizes() -> None:
    structure, masks, _ = halved("conv_net")
    net = network("conv_net")
    gone = channels_gone(structure, masks)
    small = structure.shrink(net, masks)
    conv1, conv2, hidden = 6 - gone[0], 9 - gone[1], 10 - gone[2]
    assert (small[0].in_channels, small[0].out_channels, small[1].num_parameters) == (3, conv1, conv1)
    assert (small[3].in_channels, small[3].out_channels, small[4].num_features) == (conv1, conv2, conv2)
    assert (small[7].in_features, small[7].out_features, small[8].num_features) == (4 * conv2, hidden, hidden)
    assert (small[11].in_features, small[11].out_features) == (hidden, 5)


def two_layers() -> tuple[nn.Module, ChannelStructure]:
    """Filters of 2 and 4 weights; the mean magnitudes are 1, 4 (layer 0) and 2, 3, 5 (layer 2)."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-1.0, 1.0], [4.0, -4.0]]))
        net[2].weight.copy_(torch.tensor([[2.0, 2.0], [-3.0, 3.0], [5.0, 5.0]]))
    return net, ChannelStructure(net, torch.randn(4, 2))


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


def test_shrunk_network_converts_and_trains() -> None:
    structure, masks, masked = halved("resnet20", torch.float32)
    x = images(torch.float32, seed=1)
    net = mn.convert(structure.shrink(masked, masks), x, gamma=0.5)
    assert mn.find_streams(mn.revert(net), x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        losses.append(float(backward(net, x).detach()))
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


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


def test_a_network_that_was_shrunk_is_another_one() -> None:
    net, structure = two_layers()
    masks = structure.prune(magnitude_scores(net), fraction=0.4)
    with pytest.raises(ValueError, match="shrunk already"):
        structure.shrink(structure.shrink(net, masks), masks)


def test_a_network_that_computes_something_else_is_not_handed_out() -> None:
    net = Decoy("none")
    structure = ChannelStructure(net, images(torch.float32))
    masks = structure.prune(magnitude_scores(net), fraction=0.5)
    net.kind = "number of channels"
    with pytest.raises(PruningError, match="outputs differ"):
        structure.shrink(net, masks)


def test_a_network_without_finite_outputs_is_refused() -> None:
    with pytest.raises(PruningError, match="NaN or infinite"):
        ChannelStructure(network("lenet_mlp", torch.float32), torch.full((1, 3, 4, 4), torch.nan))
