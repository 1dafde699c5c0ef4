"""The network without its channels: it is the masked one, and trains as one."""

from __future__ import annotations

import pytest
import torch

import momentumnet as mn
from momentumnet.errors import PruningError
from momentumnet.prune import magnitude_scores, masks_of
from momentumnet.prune.masking.places import places_by_name
from momentumnet.prune.structured.channels import ChannelStructure
from tests.prune.structured.channel_structures import backward, channels_gone, halved, two_layers
from tests.prune.structured.structured_nets import NETWORKS, Decoy, images, network


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
