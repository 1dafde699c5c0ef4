"""Converted networks with masks: in either order, reversible, reverted; the weights are those under the masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import momentumnet as mn
from momentumnet.prune import apply_masks, dense_state_dict, magnitude_masks, masks_of, prunable, remove_masks
from momentumnet.streams.blocks.converted import ConvertedBlock
from tests.models import CASES, WIDTH, Case, Chain, ResidualMLP
from tests.prune.nets import random_like, raw_chain

RAW = Case("raw", raw_chain, lambda: (torch.randn(5, WIDTH),))
MASKABLE = [*[case for case in CASES if case.name != "spectral_norm"], RAW]


def masks_for(net: nn.Module) -> dict[str, Tensor]:
    return random_like(prunable(net))


def gradients(net: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor | None]:
    """By the names of the bare model, and of the inputs by number."""
    torch.manual_seed(3)
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    net(*inputs).square().sum().backward()
    masked = prunable(net)
    found = {f"input {i}": x.grad for i, x in enumerate(inputs)} | {name: p.grad for name, p in masked.items()}
    return found | {name: p.grad for name, p in net.named_parameters() if "parametrizations" not in name}


def zeroed(net: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_parameter(name).mul_(mask)
    return net


def assert_equal(got: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        same = got[name] is None if gradient is None else torch.equal(got[name], gradient)
        assert same, name


@pytest.mark.parametrize("order", ["mask, then convert", "convert, then mask"])
@pytest.mark.parametrize("case", MASKABLE, ids=lambda case: case.name)
def test_reversible_gradients_are_the_stored_ones(case: Case, order: str) -> None:
    def build(backward: str) -> nn.Module:
        net = case.model()
        masks = masks_for(net)
        if order == "mask, then convert":
            apply_masks(net, masks)
            return mn.convert(net, case.example(), backward=backward)
        net = mn.convert(net, case.example(), backward=backward)
        apply_masks(net, masks)
        return net

    expected = gradients(build("stored"), case.example())
    assert_equal(gradients(build("reversible"), case.example()), expected)
    assert_equal(gradients(copy.deepcopy(build("reversible")), case.example()), expected)
    # The same network with zeros in its parameters: its gradients where weights are kept, nothing elsewhere.
    masks = masks_for(case.model())
    bare = case.model()
    if order == "mask, then convert":
        bare = mn.convert(zeroed(bare, masks), case.example())
    else:
        bare = zeroed(mn.convert(bare, case.example()), masks)  # the scale of its state is that of all the weights
    reference = gradients(bare, case.example())
    reference.update({name: reference[name].where(mask, 0) for name, mask in masks.items()})
    assert_equal(expected, reference)


@pytest.mark.parametrize("case", MASKABLE, ids=lambda case: case.name)
def test_discovery_finds_the_same_streams(case: Case) -> None:
    net = case.model()
    bare = mn.find_streams(net, case.example())
    apply_masks(net, masks_for(net))
    assert [(s.path, s.blocks) for s in mn.find_streams(net, case.example())] == [(s.path, s.blocks) for s in bare]
    converted = mn.convert(net, case.example())
    assert [s.path for s in mn.find_streams(mn.revert(converted), case.example())] == [s.path for s in bare]


@pytest.mark.parametrize("masked_first", [False, True])
@pytest.mark.parametrize("case", [RAW, MASKABLE[0]], ids=lambda case: case.name)
def test_masks_and_conversion_come_off_in_either_order(case: Case, masked_first: bool) -> None:
    net = case.model()
    masks = masks_for(net)
    keys, classes = list(net.state_dict()), [type(module) for module in net.modules()]
    if masked_first:
        apply_masks(net, masks)
    converted = mn.convert(net, case.example())
    if not masked_first:
        apply_masks(converted, masks)
    assert list(dense_state_dict(converted)) == keys

    reverted = mn.revert(converted)
    assert list(masks_of(reverted)) == list(masks)
    remove_masks(reverted)

    unmasked = copy.deepcopy(converted)
    remove_masks(unmasked)
    assert list(unmasked.state_dict()) == keys
    assert any(isinstance(module, ConvertedBlock) for module in unmasked.modules())
    expected = converted(*case.example())
    assert torch.equal(unmasked(*case.example()), expected)
    mn.revert(unmasked, inplace=True)

    for bare in (reverted, unmasked):
        assert [type(module) for module in bare.modules()] == classes
        assert list(bare.state_dict()) == keys
        assert torch.equal(bare(*case.example()), zeroed(case.model(), masks)(*case.example()))
    assert torch.equal(converted(*case.example()), expected)  # nothing of this touched the model that was copied


def test_checkpointed_modules_outside_the_streams_are_masked_too() -> None:
    case = MASKABLE[1]
    net = case.model()
    apply_masks(net, masks_for(net))
    expected = gradients(mn.convert(net, case.example(), backward="stored"), case.example())
    assert_equal(gradients(mn.convert(net, case.example(), others="checkpoint"), case.example()), expected)


@pytest.mark.parametrize("case", [RAW, MASKABLE[0]], ids=lambda case: case.name)
def test_masks_replaced_between_forward_and_backward_wait_for_the_next_pass(case: Case) -> None:
    net = case.model()
    masks, later = masks_for(net), random_like(prunable(net), seed=1)
    apply_masks(net, masks)
    expected = gradients(copy.deepcopy(mn.convert(net, case.example())), case.example())
    converted = mn.convert(net, case.example())
    loss = converted(*case.example()).square().sum()
    apply_masks(converted, later)
    loss.backward()
    assert all(torch.equal(p.grad, expected[name]) for name, p in prunable(converted).items())


@pytest.mark.parametrize("change", [lambda net: apply_masks(net, masks_for(net)), remove_masks], ids=["put", "removed"])
@pytest.mark.parametrize("case", [RAW, MASKABLE[0]], ids=lambda case: case.name)
def test_masks_put_on_or_off_between_forward_and_backward_are_noticed(
    case: Case, change: Callable[[nn.Module], object]
) -> None:
    net = case.model()
    if change is remove_masks:
        apply_masks(net, masks_for(net))
    converted = mn.convert(net, case.example())
    loss = converted(*case.example()).square().sum()
    change(converted)
    with pytest.raises(mn.ReconstructionError):
        loss.backward()


def test_a_cache_around_the_forward_does_not_reach_the_recompute() -> None:
    """PyTorch's cache would let the blocks share the weight of a layer, which a recompute of each computes anew."""
    shared = ResidualMLP()
    net = nn.Sequential(shared, shared, shared)
    apply_masks(net, masks_for(net))
    x = torch.randn(3, WIDTH)
    expected = gradients(mn.convert(net, x, backward="stored"), [x])
    converted = mn.convert(net, x)
    with parametrize.cached():
        loss = converted(x).square().sum()
    loss.backward()
    assert all(torch.equal(p.grad, expected[name]) for name, p in prunable(converted).items())


def test_second_derivatives_pass_through_masks() -> None:
    def curvature(backward: str) -> list[Tensor]:
        net = MASKABLE[0].model()
        apply_masks(net, masks_for(net))
        converted = mn.convert(net, MASKABLE[0].example(), backward=backward)
        parameters = list(converted.parameters())
        first = torch.autograd.grad(converted(*MASKABLE[0].example()).square().sum(), parameters, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), parameters))

    assert all(torch.equal(a, b) for a, b in zip(curvature("reversible"), curvature("stored"), strict=True))


def test_masks_on_a_planned_network_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Each weight is copied: a step that was planned for 1.8 MB took 2.9, without a word."""
    x = torch.randn(4, WIDTH)
    plain = Chain([ResidualMLP() for _ in range(3)])
    behind = copy.deepcopy(plain)
    apply_masks(behind, magnitude_masks(behind, fraction=0.5))
    planned = [mn.convert(model, x, budget="least", gamma=1 / 2) for model in (behind, plain)]
    for model, expected in zip(planned, (0, 1), strict=True):
        caplog.clear()
        for fraction in (0.5, 0.7):
            apply_masks(model, magnitude_masks(model, fraction=fraction))
        assert caplog.text.count("planned without them") == expected
