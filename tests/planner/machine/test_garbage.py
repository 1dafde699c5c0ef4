"""Python's full garbage collections are put off while a step is planned, and made again behind it."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.planner.machine.garbage import full_collections_put_off
from tests.planner.wide import chain, rows


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="its collector walks over all objects bit by bit")
def test_no_full_collection_is_made_in_a_plan(thresholds: tuple[int, int, int]) -> None:
    full = []

    def seen(phase: str, found: dict[str, Any]) -> None:
        full.extend([found] if phase == "start" and found["generation"] == 2 else [])

    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    mn.plan(model, torch.randn(2, 3, 8), budget="least")  # what the first one imports is not its own
    gc.collect()
    gc.freeze()
    gc.collect()  # of nothing: from now on a few new objects are a quarter of all, for which Python makes a full one
    gc.set_threshold(200, 2, 2)
    gc.callbacks.append(seen)
    try:
        mn.plan(model, torch.randn(2, 3, 8), budget="least")
    finally:
        gc.callbacks.remove(seen)
        gc.unfreeze()
    assert gc.get_threshold() == (200, 2, 2)
    assert not full


def test_young_garbage_is_collected_meanwhile(thresholds: tuple[int, int, int]) -> None:
    class Ring:
        def __init__(self) -> None:
            self.itself = self

    gc.set_threshold(50, 10, 10)
    with full_collections_put_off():
        gone = weakref.ref(Ring())
        kept = [[number] for number in range(1000)]
        assert gone() is None
    assert len(kept) == 1000


def test_plans_of_several_threads_leave_what_was_set(thresholds: tuple[int, int, int]) -> None:
    """The second begins while the first is at it, and ends behind it."""
    inside, ended = threading.Event(), threading.Event()

    def second() -> None:
        with full_collections_put_off():
            inside.set()
            ended.wait(10)

    thread = threading.Thread(target=second)
    with full_collections_put_off():
        thread.start()
        inside.wait(10)
    assert gc.get_threshold() != thresholds
    ended.set()
    thread.join()
    assert gc.get_threshold() == thresholds


def test_what_was_set_comes_back_behind_an_error(thresholds: tuple[int, int, int]) -> None:
    with pytest.raises(mn.ConversionError):
        mn.plan(nn.Linear(2, 2), torch.randn(1, 2), budget="least")
    assert gc.get_threshold() == thresholds


@pytest.mark.parametrize("gamma", [0, 1 / 8])
def test_nothing_that_a_plan_has_measured_stays(gamma: float) -> None:
    """A graph owns the hooks of what it saves: one that held a tensor of it would keep both for good."""
    model, x = chain(), rows()

    def alive() -> int:
        gc.collect()
        return sum(type(found) is Tensor for found in gc.get_objects())

    mn.plan(model, x, budget="least", gamma=gamma)  # makes what a process has once
    before = alive()
    plan = mn.plan(model, x, budget="least", gamma=gamma)
    assert plan.units
    assert alive() <= before
