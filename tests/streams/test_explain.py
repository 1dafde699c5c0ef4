"""The reasons given for what is no stream."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

import momentumnet as mn
from momentumnet.errors import ConversionError
from momentumnet.streams import discover
from tests.streams import nets
from tests.streams.nets import WIDTH, Calls, modules, summary, tokens


@pytest.mark.parametrize("build", [lambda: nets.PreActivation(inplace=True), nets.AddsIntoInput])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("views", [(), (nn.Unflatten(0, (2, 5)),)], ids=["whole", "view"])
def test_a_block_that_overwrites_its_input_is_refused(build, frozen, views):
    stem = nn.Sequential(nn.Linear(WIDTH, WIDTH), *views)
    model = nn.Sequential(stem, *(build() for _ in range(3))).requires_grad_(not frozen)
    found = discover(model, torch.randn(10, WIDTH))
    assert found.streams == ()
    (rejection,) = [rejection for rejection in found.rejections if "overwrites" in rejection.reason]
    assert rejection.blocks == ("1", "2", "3")
    assert "inplace=False" in rejection.reason
    assert summary(nn.Sequential(*(nets.PreActivation(inplace=False) for _ in range(3))), tokens())


def test_a_skip_written_in_the_parent_is_explained():
    def forward(self, x):
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = x + self.drop(attention(self.norm(x)))
            x = x + mlp(x)
        return x

    def build():
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())

    model = Calls(
        forward, attention=modules(2, build), mlp=modules(2, build), norm=nn.LayerNorm(WIDTH), drop=nn.Dropout(0.1)
    )
    found = discover(model, tokens())
    assert found.streams == ()
    (rejection,) = [rejection for rejection in found.rejections if "written in" in rejection.reason]
    assert rejection.blocks == ("drop", "mlp.0", "mlp.1")
    assert "Calls.forward" in rejection.reason
    assert "class Residual" in rejection.reason


def test_a_block_that_changes_the_shape_and_a_block_alone_are_explained():
    model = torchvision.models.resnet18(weights=None)
    found = {rejection.blocks: rejection.reason for rejection in discover(model, torch.randn(1, 3, 64, 64)).rejections}
    assert found["layer2.0",] == "changes the shape from (1, 64, 16, 16) to (1, 128, 8, 8)"
    assert "a stream needs two" in found["layer2.1",]


def test_blocks_that_are_not_called_but_what_they_hold_is_are_explained():
    """Hooks see what is inside them, and not them."""

    def forward(self, x):
        for layer in self.layers:
            x = x + layer.branch(x)
        return x

    model = Calls(forward, layers=modules(3))
    found = discover(model, tokens())
    assert found.streams == ()
    (rejection,) = [rejection for rejection in found.rejections if "call the modules" in rejection.reason]
    assert (rejection.path, rejection.blocks) == ("layers", ("layers.0", "layers.1", "layers.2"))
    assert not found.by_forward
    assert not [found for found in discover(nets.chain(3), tokens()).rejections if "call the modules" in found.reason]


def test_modules_that_nobody_uses_are_no_blocks():
    model = Calls(lambda self, x: self.used(x), used=nets.chain(2), layers=modules(3))
    found = discover(model, tokens())
    assert (len(found.streams), found.rejections) == (1, ())


def test_the_error_says_that_a_budget_needs_no_stream() -> None:
    halves = [nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, width)) for width in (8, 4)]
    model, x = nn.Sequential(*halves), torch.randn(32, 8)
    with pytest.raises(
        ConversionError,
        match=r"a budget of bytes .*budget='4GiB'\), or 'least' .*--budget least\)\.$",
    ):
        mn.convert(model, x)
    assert mn.convert(model, x, budget="4GiB")(x).shape == (32, 4)
