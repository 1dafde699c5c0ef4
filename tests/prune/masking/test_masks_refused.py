"""Masks that are refused, or fail on the way: the model stays as it was."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from momentumnet.prune import apply_masks, masks_of, prunable, remove_masks
from momentumnet.prune.masking.parametrization import Mask
from tests.models import WIDTH
from tests.prune.nets import Tied, masked, perceptron, random_like, snapshot


def test_pickling_is_refused_by_pytorch_and_said_so() -> None:
    net, _ = masked(perceptron())
    with pytest.raises(RuntimeError, match="state_dict"):
        pickle.dumps(net)


def keep(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("build", "masks", "message"),
    [
        (perceptron, {"0.weight": keep(8, 5), "9.weight": keep(1)}, "'9.weight', which is not a parameter"),
        (perceptron, {"0.weight": keep(8, 5), "2.weight": keep(8, 3)}, r"shape \(3, 8\), got .*\(8, 3\)"),
        (perceptron, {"0.weight": keep(8, 5), "2.weight": keep(3, 8).float()}, "torch.bool"),
        (perceptron, {"0.weight": keep(8, 5), "2.weight": [True]}, "got list"),
        (Tied, {"second.weight": keep(WIDTH, WIDTH)}, "shared, and its name is 'first.weight'"),
        (lambda: nn.LSTM(2, 2), {"weight_hh_l0": keep(8, 2)}, "list of its own"),
        (lambda: nn.GRU(2, 2), {"bias_hh_l0": keep(6)}, "list of its own"),
        (lambda: spectral_norm(nn.Linear(2, 2)), {"parametrizations.weight.original": keep(2, 2)}, "already"),
        (lambda: weight_norm(nn.Linear(2, 2)), {"weight": keep(2, 2)}, "not a parameter"),
    ],
)
def test_what_cannot_be_masked_is_refused_and_nothing_changes(
    build: Callable[[], nn.Module], masks: dict[str, Tensor], message: str
) -> None:
    net = build()
    before = snapshot(net)
    with pytest.raises(ValueError, match=message):
        apply_masks(net, masks)
    assert snapshot(net) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_scripted_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="scripted"):
        apply_masks(torch.jit.script(nn.Linear(2, 2)), {"weight": keep(2, 2)})


@pytest.mark.parametrize("already", [False, True])
def test_a_failure_on_the_way_is_undone(already: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net = perceptron()
    first = random_like(prunable(net))
    if already:
        apply_masks(net, {"0.weight": first["0.weight"]})
    before = snapshot(net)
    register = parametrize.register_parametrization

    def fail_on_the_last(module: nn.Module, name: str, mask: Mask) -> None:
        if module is net[2]:
            raise RuntimeError("out of memory")
        register(module, name, mask)

    monkeypatch.setattr(parametrize, "register_parametrization", fail_on_the_last)
    with pytest.raises(RuntimeError, match="out of memory"):
        apply_masks(net, random_like(prunable(net), seed=1))
    assert snapshot(net) == before
    assert list(masks_of(net)) == (["0.weight"] if already else [])
    if already:
        assert torch.equal(masks_of(net)["0.weight"], first["0.weight"])


def test_a_mask_under_another_parametrization_stays() -> None:
    net, _ = masked(nn.Linear(3, 3))
    spectral_norm(net)
    before = net.parametrizations.weight.original.detach().clone()
    with pytest.raises(ValueError, match="another parametrization"):
        remove_masks(net)
    assert torch.equal(net.parametrizations.weight.original, before)
