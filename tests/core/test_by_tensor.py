"""What is known of a tensor is known by its identity, as long as it lives."""

from __future__ import annotations

import copy
import pickle

import torch

from momentumnet.core.tensors.by_tensor import ByTensor


def test_only_the_very_tensor_is_known() -> None:
    known: ByTensor[str] = ByTensor()
    x = torch.zeros(3)
    known.put(x, "x")
    assert known.get(x) == "x"
    assert known.get(x.detach()) is None
    assert known.get(x.clone()) is None


def test_what_is_taken_is_known_no_more() -> None:
    known: ByTensor[str] = ByTensor()
    x = torch.zeros(3)
    known.put(x, "x")
    assert known.take(x) == "x"
    assert known.get(x) is None
    assert known.take(x) is None


def test_an_entry_ends_with_its_tensor() -> None:
    known: ByTensor[str] = ByTensor()
    x = torch.zeros(3)
    known.put(x, "x")
    del x
    assert not known._entries


def test_copies_know_nothing() -> None:
    known: ByTensor[str] = ByTensor()
    x = torch.zeros(3)
    known.put(x, "x")
    assert copy.deepcopy(known).get(x) is None
    assert pickle.loads(pickle.dumps(known)).get(x) is None
    assert known.get(x) == "x"
