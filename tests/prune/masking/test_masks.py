"""Masks on a model: names, what they do to weights and gradients, and how they come off."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from momentumnet.prune import apply_masks, masks_of, prunable, remove_masks, sparsity
from tests.models import CASES, WIDTH
from tests.prune.nets import Attention, Tied, masked, perceptron, random_like, raw_chain, snapshot


@pytest.mark.parametrize("build", [Tied, Attention, raw_chain, *[case.model for case in CASES]])
def test_names_and_parameters_are_those_of_the_bare_model(build: Callable[[], nn.Module]) -> None:
    net = build()
    bare = {name: p for name, p in prunable(net).items() if "parametrizations" not in name}
    apply_masks(net, random_like(bare))
    found = prunable(net, skip=[name for name in prunable(net) if "parametrizations" in name])
    assert list(found) == list(bare)
    assert all(found[name] is parameter for name, parameter in bare.items())
    assert list(masks_of(net)) == list(bare)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("under", [3.0, -1.0, math.nan, math.inf, -0.0])
def test_nothing_under_a_mask_leaks(dtype: torch.dtype, under: float) -> None:
    layer = nn.Linear(4, 3).to(dtype)
    mask = torch.tensor([True, False, True, False]).expand(3, 4)
    with torch.no_grad():
        layer.weight[~mask] = under
    parameter = layer.weight
    expected = parameter.detach()[mask].clone()
    apply_masks(layer, {"weight": mask})
    assert layer.weight.dtype == dtype
    assert torch.equal(layer.weight[mask], expected)
    zeros = layer.weight.detach()[~mask]
    assert torch.equal(zeros, torch.zeros_like(zeros))
    assert not zeros.signbit().any()
    layer(torch.ones(2, 4, dtype=dtype)).sum().backward()
    assert torch.equal(parameter.grad, 2.0 * mask.to(dtype))


def test_gradients_are_those_of_the_masked_function() -> None:
    net = perceptron()
    weights = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    bare = copy.deepcopy(net)
    net, masks = masked(net)
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net(x).square().sum().backward()
    effective = {name: w * masks[name] if name in masks else w for name, w in weights.items()}
    functional_call(bare, effective, x).square().sum().backward()
    for name, parameter in prunable(net).items():
        assert torch.allclose(parameter.grad, weights[name].grad, rtol=1e-12, atol=1e-15)
    assert torch.allclose(net[0].bias.grad, weights["0.bias"].grad, rtol=1e-12, atol=1e-15)


def test_attention_reads_the_masked_projection_in_training_and_on_the_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
    x = torch.randn(2, 3, WIDTH)
    bare = copy.deepcopy(layer)
    layer, masks = masked(layer)
    with torch.no_grad():
        for name, mask in masks.items():
            bare.get_parameter(name).mul_(mask)
    assert "self_attn.in_proj_weight" in masks
    assert torch.equal(layer(x), bare(x))
    layer.eval(), bare.eval()
    with torch.no_grad():
        assert torch.equal(layer(x), bare(x))


def test_masks_are_replaced_and_never_stacked() -> None:
    net = perceptron()
    apply_masks(net, random_like(prunable(net), seed=0))
    second = random_like(prunable(net), seed=1)
    apply_masks(net, {"2.weight": second["2.weight"]})
    assert len(net[2].parametrizations.weight) == 1
    assert torch.equal(masks_of(net)["2.weight"], second["2.weight"])
    assert torch.equal(masks_of(net)["0.weight"], random_like(prunable(net), seed=0)["0.weight"])


def test_masks_given_and_got_are_copies() -> None:
    net, masks = masked(perceptron())
    expected = masks["0.weight"].clone()
    masks["0.weight"].logical_not_()
    masks_of(net)["0.weight"].fill_(False)
    assert torch.equal(masks_of(net)["0.weight"], expected)


@pytest.mark.parametrize("build", [perceptron, Tied, Attention, raw_chain])
def test_removing_masks_leaves_the_bare_model_with_zeros(build: Callable[[], nn.Module]) -> None:
    net = build()
    everything = dict(net.named_parameters())
    before = snapshot(net)
    masks = random_like(everything, seed=2)
    values = {name: p.detach().clone() for name, p in everything.items()}
    apply_masks(net, masks)
    removed = remove_masks(net)
    assert snapshot(net) == before
    assert removed.keys() == masks.keys()
    assert all(torch.equal(removed[name], mask) for name, mask in masks.items())
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, values[name].where(masks[name], 0))
    assert remove_masks(net) == {} == masks_of(net)


def test_masks_in_several_steps_come_off_in_the_order_of_the_bare_model() -> None:
    net = nn.Linear(2, 3)
    names = [name for name, _ in net.named_parameters()]
    apply_masks(net, {"bias": torch.ones(3, dtype=torch.bool)})
    apply_masks(net, {"weight": torch.ones(3, 2, dtype=torch.bool)})
    assert list(masks_of(net)) == names
    remove_masks(net)
    assert [name for name, _ in net.named_parameters()] == names


def test_a_shared_parameter_is_masked_wherever_it_stands_and_counted_once() -> None:
    net = Tied()
    assert sum(p.numel() for p in prunable(net).values()) == WIDTH * WIDTH
    table, matrix = torch.rand(6, WIDTH) < 0.5, torch.rand(WIDTH, WIDTH) < 0.5
    count = len(list(net.parameters()))
    apply_masks(net, {"table.weight": table, "first.weight": matrix})
    assert torch.equal(net.out.weight, net.table.weight)
    assert not net.out.weight[~table].any()
    assert torch.equal(net.second.weight, net.first.weight)
    assert len(list(net.parameters())) == count
    assert list(masks_of(net)) == ["table.weight", "first.weight"]
    apply_masks(net, {"first.weight": ~matrix})
    assert not net.second.weight[matrix].any()
    twin = copy.deepcopy(net)
    remove_masks(twin)
    assert twin.second.weight is twin.first.weight
    assert twin.out.weight is twin.table.weight


def test_a_module_in_two_places_is_masked_once() -> None:
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    apply_masks(net, random_like(prunable(net)))
    assert list(masks_of(net)) == ["0.weight"]
    assert len(layer.parametrizations.weight) == 1
    remove_masks(net)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("after_forward", [False, True])
def test_copies_are_equal_and_independent(after_forward: bool) -> None:
    net, masks = masked(perceptron())
    x = torch.ones(2, 5, dtype=torch.float64)
    if after_forward:
        net(x)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(3)
    with parametrize.cached():  # PyTorch's cache takes a copy for the original
        assert torch.equal(twin[0].weight, 3 * net[0].weight)
    everything = {name: torch.ones_like(p, dtype=torch.bool) for name, p in perceptron().named_parameters()}
    apply_masks(copy.deepcopy(net), everything)  # a second parametrization in a class that copies share
    remove_masks(twin)
    assert isinstance(net[0].bias, nn.Parameter)
    assert torch.equal(masks_of(net)["0.weight"], masks["0.weight"])
    assert not net[0].weight[~masks["0.weight"]].any()
    assert list(twin.state_dict()) == list(perceptron().state_dict())


def test_state_dict_goes_into_a_freshly_masked_model_and_through_a_file(tmp_path: object) -> None:
    net, masks = masked(perceptron())
    torch.save(net.state_dict(), f"{tmp_path}/net.pt")
    other = perceptron()
    apply_masks(other, {name: torch.ones_like(mask) for name, mask in masks.items()})
    other.load_state_dict(torch.load(f"{tmp_path}/net.pt"))
    x = torch.ones(2, 5, dtype=torch.float64)
    assert torch.equal(other(x), net(x))
    assert all(torch.equal(masks_of(other)[name], mask) for name, mask in masks.items())


def test_dtype_and_device_moves_keep_the_masks() -> None:
    net, masks = masked(perceptron())
    net.half()
    assert net[0].weight.dtype == torch.float16
    assert all(torch.equal(mask, masks[name]) for name, mask in masks_of(net).items())
    assert net.to("meta")[0].weight.device.type == "meta"


def test_gradients_still_arrive_where_others_wait_for_them() -> None:
    layer = nn.Linear(3, 2)
    parameter, seen = layer.weight, []
    node = parameter.expand_as(parameter).grad_fn.next_functions[0][0]  # what DistributedDataParallel hooks on
    node.register_hook(lambda *_: seen.append("node"))
    parameter.register_post_accumulate_grad_hook(lambda _: seen.append("accumulated"))
    apply_masks(layer, {"weight": torch.ones(2, 3, dtype=torch.bool)})
    layer(torch.ones(1, 3)).sum().backward()
    assert sorted(seen) == ["accumulated", "node"]
    remove_masks(layer)
    layer(torch.ones(1, 3)).sum().backward()
    assert sorted(seen) == ["accumulated"] * 2 + ["node"] * 2


def test_parameter_lists_carry_masks() -> None:
    parameters = nn.ParameterList([torch.randn(3, 3), torch.randn(3, 2)])
    masks = random_like(dict(parameters.named_parameters()))
    apply_masks(parameters, masks)
    assert not parameters[0][~masks["0"]].any()
    assert len(parameters) == 2
    remove_masks(parameters)
    assert [name for name, _ in parameters.named_parameters()] == ["0", "1"]


def test_frozen_parameters_stay_frozen() -> None:
    net = perceptron().requires_grad_(False)
    masked(net)
    assert not any(p.requires_grad for p in net.parameters())
    assert not net[0].weight.requires_grad


def test_compiled_models_read_the_masks() -> None:
    net, _ = masked(perceptron())
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x = torch.ones(2, 5, dtype=torch.float64)
    assert torch.equal(compiled(x), net(x))
    apply_masks(net, random_like(prunable(net), seed=5))
    assert torch.equal(compiled(x), net(x))


def test_a_mask_beside_another_parametrization_comes_off_alone() -> None:
    net = spectral_norm(nn.Linear(3, 3))
    keys = list(net.state_dict())
    apply_masks(net, {"bias": torch.tensor([True, False, True])})
    assert net.bias[1] == 0
    remove_masks(net)
    assert list(net.state_dict()) == keys
    assert parametrize.is_parametrized(net, "weight")


def test_sparsity_counts_elements() -> None:
    masks = {"a": torch.tensor([True, False, False]), "b": torch.ones(7, dtype=torch.bool)}
    assert sparsity(masks) == 2 / 10
    net = perceptron()
    assert sparsity(net) == 0.0 == sparsity({})
    apply_masks(net, {"2.bias": torch.tensor([True, False, False])})
    assert sparsity(net) == 2 / 3
