"""Filter normalisation against its formula, filter by filter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from momentumnet.landscape import filter_normalised_direction
from tests.init.networks import BagOfWords


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    nn.init.normal_(model[1].weight)
    return model


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("vectors", [False, True])
def test_formula(vectors: bool) -> None:
    """d_ij / |d_ij| |w_ij| with the Gaussian numbers that the generator draws, in the order of the parameters."""
    model, generator = network(), seeded(7)
    direction = filter_normalised_direction(model, vectors=vectors, generator=seeded(7))
    assert list(direction) == [name for name, _ in model.named_parameters()]
    for name, weight in model.named_parameters():
        if weight.dim() == 1 and not vectors:
            assert torch.equal(direction[name], torch.zeros_like(weight))
            continue
        drawn = torch.randn(weight.shape, generator=generator)
        for index in range(len(weight)):
            d, w = drawn[index], weight[index].detach()
            expected = d / d.square().sum().sqrt() * w.square().sum().sqrt()
            torch.testing.assert_close(direction[name][index], expected, msg=name)


def test_vectors_move_by_their_own_value() -> None:
    model = network()
    direction = filter_normalised_direction(model, vectors=True)
    torch.testing.assert_close(direction["1.weight"].abs(), model[1].weight.detach().abs())
    assert direction["1.bias"].tolist() == [0] * 4  # it is zero itself


def test_scalar_parameters() -> None:
    model = nn.Module()
    model.gain = nn.Parameter(torch.tensor(-3.0))
    assert filter_normalised_direction(model)["gain"] == 0
    assert filter_normalised_direction(model, vectors=True)["gain"].abs() == 3


def test_follows_the_scale_of_each_filter() -> None:
    model = network()
    before = filter_normalised_direction(model)["0.weight"]
    scales = torch.tensor([2.0, 0.5, 0.0, 3.0]).view(4, 1, 1, 1)
    with torch.no_grad():
        model[0].weight.mul_(scales)
    torch.testing.assert_close(filter_normalised_direction(model)["0.weight"], before * scales)


def test_generators() -> None:
    model = network()
    state, generator = torch.get_rng_state(), seeded(3)
    first, again = filter_normalised_direction(model), filter_normalised_direction(model)
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (filter_normalised_direction(model, generator=generator)["0.weight"] for _ in range(2))
    assert not torch.equal(one, other)


def test_shared_and_frozen_parameters() -> None:
    model = BagOfWords()
    assert list(filter_normalised_direction(model)) == ["embedding.weight"]
    frozen = network()
    frozen[0].requires_grad_(False)
    assert list(filter_normalised_direction(frozen)) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    with pytest.raises(ValueError, match="no parameter with requires_grad"):
        filter_normalised_direction(model.requires_grad_(False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    direction: dict[str, Tensor] = filter_normalised_direction(network().to(dtype))
    assert {part.dtype for part in direction.values()} == {dtype}
