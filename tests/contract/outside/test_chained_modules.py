"""Modules with layers of their own that are recomputed, behind a chain of layers with it, from what that takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mnasnet0_5

import momentumnet as mn
from momentumnet.streams.finding.discover import discover
from tests.contract.outside.stem import FINGERPRINT, FREED, PIXELS, WIDTH, Between, Stem, held, images, pair
from tests.contract.parents import Looped, converted, straight
from tests.contract.reference import assert_same, train_step

POOLED = HIDDEN = 4 * PIXELS // 4  # bytes of what the module takes, and of what it keeps of its own


class StemAndModule(Stem):
    """Behind the stem a module with layers of its own, as a ResNet's first block, and something between them."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__(dropout=nn.Identity())
        self.module = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.Tanh(), nn.Conv2d(WIDTH, WIDTH, 1))
        self.pooled: Between = lambda x: x
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        x = self.pooled(self.pool(self.act(self.norm(self.conv(x)))))
        factor = x.square().mean() if self.shared else 1
        return self.blocks(factor * self.module(x)).mean((2, 3))


def test_module_behind_a_chain_keeps_no_input() -> None:
    kept, recomputed = pair(StemAndModule)
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)
    planned = [mn.plan(StemAndModule(), images(), others=others).saved_after for others in ("keep", "checkpoint")]
    assert FREED + HIDDEN + POOLED <= planned[0] - planned[1] <= FREED + HIDDEN + POOLED + 100
    assert held(kept) - held(recomputed) >= FREED + HIDDEN + POOLED - FINGERPRINT


def test_module_behind_a_chain_whose_input_is_kept_anyway_keeps_it_too() -> None:
    assert discover(StemAndModule(shared=True), images()).outside == ("module",)
    kept, recomputed = pair(lambda: StemAndModule(shared=True))
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)


def test_module_that_no_longer_follows_its_chain_is_recomputed_by_itself() -> None:
    kept, recomputed = pair(StemAndModule)
    kept.pooled = recomputed.pooled = lambda x: 2 * x
    assert discover(mn.revert(kept), images()).outside == ("module",)
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)
    assert held(kept) - held(recomputed) >= FREED + HIDDEN - FINGERPRINT


def test_module_that_is_called_twice_is_recomputed_by_itself() -> None:
    class Twice(StemAndModule):
        def forward(self, x: Tensor) -> Tensor:
            x = self.module(self.pool(self.act(self.norm(self.conv(x)))))
            return self.blocks(self.module(x)).mean((2, 3))

    assert discover(Twice(), images()).outside == ("module",)
    kept, recomputed = pair(Twice)
    assert_same(train_step(recomputed, (images(),)), train_step(kept, (images(),)), tolerance=0.0)


def test_checkpointed_classifier_that_begins_in_place() -> None:
    """torchvision's classifiers begin with Dropout(inplace=True)."""
    torch.manual_seed(0)
    model, x = mnasnet0_5(num_classes=4), torch.randn(2, 3, 64, 64)
    outcomes = [train_step(mn.convert(model, x, others=others), (x,)) for others in ("keep", "checkpoint")]
    assert_same(outcomes[1], outcomes[0])


def test_unknown_value_of_others_is_refused_for_streams_named_by_hand() -> None:
    with pytest.raises(ValueError, match="others"):
        converted(Looped(straight), others="sideways")
