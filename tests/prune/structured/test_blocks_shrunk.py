"""The network without its blocks: it is the masked one, and trains as one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import momentumnet as mn
from momentumnet.errors import PruningError
from momentumnet.prune import magnitude_scores, masks_of
from momentumnet.prune.structured.block_search import DroppedBlock
from momentumnet.prune.structured.blocks import BlockStructure
from tests.prune.structured.block_nets import masked, net_of, resnet_structure, vectors
from tests.prune.structured.structured_nets import images, network


@pytest.mark.parametrize("fraction", [1 / 3, 2 / 3, 1.0])
@pytest.mark.parametrize("kind", ["plain", "arguments", "keyword"])
def test_shrunk_equals_masked(kind: str, fraction: float) -> None:
    net = net_of(kind)
    structure = BlockStructure(net, vectors())
    masks = structure.prune(magnitude_scores(net), fraction=fraction)
    own = masked(net, masks)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, weight_decay=0.1)
    own(vectors()).square().mean().backward()
    optimizer.step()
    small = structure.shrink(own, masks)
    torch.testing.assert_close(small(vectors(1)), own(vectors(1)), rtol=1e-12, atol=1e-12)
    assert sum(isinstance(block, DroppedBlock) for block in small.blocks) == round(3 * fraction)
    assert not masks_of(small)


def test_shrunk_resnet_equals_masked() -> None:
    net, structure = network("resnet20"), resnet_structure()
    masks = structure.prune(magnitude_scores(net), fraction=0.5)
    own = masked(net, masks).train()
    for seed in (1, 2):  # the running statistics move
        own(images(seed=seed))
    small = structure.shrink(own, masks)
    torch.testing.assert_close(small.eval()(images()), own.eval()(images()), rtol=1e-12, atol=1e-12)
    removed = sum(int((~mask).sum()) for mask in masks.values())
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in net.parameters()) - removed
    assert small.state_dict().keys() < net.state_dict().keys()


def test_shrunk_equals_masked_in_single_precision() -> None:
    net, x = net_of("plain").float(), vectors().float()
    structure = BlockStructure(net, x)
    masks = structure.prune(magnitude_scores(net), fraction=1 / 3)
    torch.testing.assert_close(structure.shrink(net, masks)(x), masked(net, masks)(x))


def test_gradients_are_those_of_the_masked_network() -> None:
    net = network("resnet20")
    structure = resnet_structure()
    masks = structure.prune(magnitude_scores(net), fraction=0.5)
    small, own = structure.shrink(net, masks).train(), masked(net, masks).train()
    for one in (small, own):
        F.cross_entropy(one(images()), torch.arange(6) % 5).backward()
    found = {name: parameter.grad for name, parameter in own.named_parameters()}
    for name, parameter in small.named_parameters():
        path, _, last = name.rpartition(".")
        expected = found.get(name, found.get(f"{path}.parametrizations.{last}.original"))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-13)


def test_shrunk_network_converts_and_trains() -> None:
    net, structure = network("resnet20"), resnet_structure()
    masks = structure.prune(magnitude_scores(net), fraction={"layer1": 0.4, "layer2": 0, "layer3": 0}, scope="layer")
    converted = mn.convert(structure.shrink(net, masks).train(), images(), gamma=0.5)
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(converted(images()), torch.arange(6) % 5)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_network_that_was_shrunk_is_another_one() -> None:
    net = net_of("plain")
    structure = BlockStructure(net, vectors())
    masks = structure.prune(magnitude_scores(net), fraction=1 / 3)
    with pytest.raises(ValueError, match="shrunk already"):
        structure.shrink(structure.shrink(net, masks), masks)


def test_a_block_that_became_no_identity_is_not_dropped() -> None:
    net = net_of("plain")
    structure = BlockStructure(net, vectors())
    masks = structure.prune(magnitude_scores(net), fraction=1 / 3)
    for block in net.blocks:
        block.kind = "post-norm"
    with pytest.raises(PruningError, match="outputs differ"):
        structure.shrink(net, masks)
