"""Which parameters can be masked, and how some of them are left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.prune import l1_unstructured, remove

from momentumnet.prune import prunable
from tests.prune.nets import Attention, Tied, raw_chain


def test_prunable_are_the_matrices() -> None:
    assert list(prunable(Attention())) == ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert list(prunable(raw_chain())) == ["0.w", "1.w", "2.w"]
    assert list(prunable(Tied())) == ["first.weight"]
    reading, writing = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    writing.weight = reading.weight
    assert not prunable(nn.Sequential(writing, reading))
    other = nn.ModuleList([nn.Conv2d(4, 1, 1), nn.LSTMCell(2, 2), nn.RMSNorm((2, 2)), nn.Bilinear(2, 2, 1)])
    assert list(prunable(other)) == ["0.weight", "1.weight_ih", "1.weight_hh", "3.weight"]


def test_quantised_weights_are_not_pruned() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    assert list(prunable(net)) == ["1.weight"]


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
def test_norms_of_rows_are_not_pruned() -> None:
    assert list(prunable(nn.utils.weight_norm(nn.Linear(4, 3)))) == ["weight_v"]


def test_prunable_skips_parameters_and_modules_by_any_of_their_names() -> None:
    net = Tied()
    assert not prunable(net, skip=["second"])
    assert not prunable(net, skip=["second.weight"])
    assert not prunable(net, skip=[""])
    assert list(prunable(net, skip=["first.bias"])) == ["first.weight"]
    assert list(prunable(nn.Sequential(nn.Linear(2, 2), *[nn.ReLU()] * 9, nn.Linear(2, 2)), skip=["1"])) == [
        "0.weight",
        "10.weight",
    ]


@pytest.mark.parametrize("skip", [["third"], ["first.weigh"], "first"])
def test_prunable_refuses_unknown_names(skip: list[str] | str) -> None:
    with pytest.raises(ValueError, match="skip"):
        prunable(Tied(), skip=skip)


def test_prunable_refuses_the_masks_of_pytorch() -> None:
    """Weights under them have values, by which they would count as kept."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    l1_unstructured(net[0], "weight", amount=8)
    with pytest.raises(ValueError, match=r"'0\..*' is pruned by torch.nn.utils.prune"):
        prunable(net)
    remove(net[0], "weight")
    assert list(prunable(net)) == ["0.weight", "1.weight"]


def test_prunable_refuses_parameters_without_a_shape() -> None:
    with pytest.raises(ValueError, match="lazy"):
        prunable(nn.LazyLinear(3))
