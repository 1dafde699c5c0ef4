"""Tensors that a call was given are known by the memory that they lie in."""

from __future__ import annotations

import numpy as np
import torch

from momentumnet.recompute.saved.origins import Origins, Place

PARAMETER = Place("parameter", 1, "weight")


def test_a_given_tensor_and_views_of_it_are_known() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 6))
    origins = Origins([(*PARAMETER[:3], weight)])
    assert origins.starting_at(weight) == PARAMETER
    assert origins.starting_at(weight.t()) == PARAMETER
    assert origins.place_of(weight[1]) == PARAMETER._replace(offset=6)
    assert origins.starting_at(torch.randn(4, 6)) is None


def test_another_tensor_at_the_same_address_is_not_the_given_one() -> None:
    """As where a given one has lost its memory, as FSDP takes it away, and somebody else has got it."""
    memory = np.zeros(24, dtype=np.float32)
    given, other = torch.from_numpy(memory), torch.from_numpy(memory)
    assert given.data_ptr() == other.data_ptr()
    origins = Origins([(*PARAMETER[:3], given)])
    assert origins.starting_at(given) == PARAMETER
    assert origins.starting_at(other) is None
