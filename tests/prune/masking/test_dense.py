"""State dicts with the keys of the model without masks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from momentumnet.prune import apply_masks, dense_state_dict, load_dense_state_dict, masks_of
from tests.models import CASES, Chain, ResidualMLP
from tests.prune.nets import Attention, Tied, perceptron, random_like, raw_chain

BUILDS = [perceptron, Tied, Attention, raw_chain, *[case.model for case in CASES if case.name != "spectral_norm"]]


def shared_layer() -> nn.Module:
    layer = nn.Linear(2, 2)
    return nn.ModuleDict({"one": layer, "two": nn.Sequential(layer, nn.BatchNorm1d(2))})


def with_buffer() -> nn.Module:
    """Its own parameters are all masked, so that the first key of its state dict is that of a buffer."""
    net = nn.Sequential(nn.Linear(2, 2))
    net.register_parameter("last", nn.Parameter(torch.randn(3)))
    net.register_buffer("count", torch.zeros(()))
    return net


@pytest.mark.parametrize("build", [*BUILDS, shared_layer, with_buffer])
def test_dense_state_has_the_keys_of_the_bare_model_and_its_zeros(build: Callable[[], nn.Module]) -> None:
    net = build()
    expected = {key: value.clone() for key, value in net.state_dict().items()}
    masks = random_like(dict(net.named_parameters()))
    names = {id(p): name for name, p in net.named_parameters()}
    for key, parameter in net.named_parameters(remove_duplicate=False):
        expected[key] = expected[key].where(masks[names[id(parameter)]], 0)
    apply_masks(net, masks)
    state = dense_state_dict(net)
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert not any(value.requires_grad for value in state.values())
    bare = build()
    bare.load_state_dict(state)


def test_without_masks_it_is_the_state_dict() -> None:
    net = Tied()
    assert list(dense_state_dict(net)) == list(net.state_dict())
    load_dense_state_dict(net, Tied().state_dict())


@pytest.mark.parametrize("build", [*BUILDS, shared_layer, with_buffer])
def test_dense_state_loads_under_the_masks_that_are_there(build: Callable[[], nn.Module]) -> None:
    net = build()
    masks = random_like(dict(net.named_parameters()))
    apply_masks(net, masks)
    torch.manual_seed(5)
    other = build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    load_dense_state_dict(net, other.state_dict())
    for name, mask in masks.items():
        assert torch.equal(masks_of(net)[name], mask)
    twin = copy.deepcopy(other)
    apply_masks(twin, masks)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


def changed(state: dict[str, Tensor], key: str, value: Tensor | None) -> dict[str, Tensor]:
    state = dict(state)
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stem.weight", None, r"lacks \['stem.weight'\]"),
        ("stem.wait", torch.zeros(1), r"has \['stem.wait'\]"),
        ("stem.parametrizations.weight.original", torch.zeros(16, 16), "has"),
        ("head.weight", torch.zeros(4, 15), "'head.weight' must have the shape"),
        ("head.weight", 3, "'head.weight' must have the shape"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(key: str, value: object, message: str) -> None:
    net = Chain([ResidualMLP()])
    bare = {key: value + 1 for key, value in net.state_dict().items()}
    apply_masks(net, random_like(dict(net.named_parameters())))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_dense_state_dict(net, changed(bare, key, value))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
