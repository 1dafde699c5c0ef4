"""Ways in which double-stream blocks are handed the two tensors, and in which they return them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from tests.contract.double_streams import (
    GAMMA,
    Double,
    Net,
    Pair,
    assert_same_gradients,
    both,
    by_hand,
    gradients,
)


class Found(NamedTuple):
    first: Tensor
    score: float
    second: Tensor


class Wrapped(Double):
    """Returns the two among other things."""

    wrap: Callable[[Tensor, Tensor], Any]

    def forward(self, image: Tensor, text: Tensor) -> Any:
        return self.wrap(*super().forward(image, text))


def returned_in(wrap: Callable[[Tensor, Tensor], Any]) -> Callable[[str], nn.Module]:
    def block(first: str) -> nn.Module:
        made = Wrapped(first)
        made.wrap = wrap
        return made

    return block


def by_keyword(block: nn.Module, image: Tensor, text: Tensor) -> Pair:
    text, image = block(text=text, image=image)
    return image, text


def some_by_keyword(block: nn.Module, image: Tensor, text: Tensor) -> Pair:
    return block(image, text=text)


def third(block: nn.Module, image: Tensor, text: Tensor) -> Pair:
    found = block(image, text)
    assert type(found) in (list, Found)
    return found[0], found[2]


def from_mapping(block: nn.Module, image: Tensor, text: Tensor) -> Pair:
    found = block(image, text)
    assert type(found) is OrderedDict
    assert list(found) == ["image", "aside", "text"]
    return found["image"], found["text"]


WAYS = {
    "by keyword": Net("text", call=by_keyword),
    "one by keyword": Net("image", call=some_by_keyword),
    "list": Net(block=returned_in(lambda a, b: [a, None, b]), call=third),
    "named tuple": Net(block=returned_in(lambda a, b: Found(a, 1.0, b)), call=third),
    "mapping": Net(
        block=returned_in(lambda a, b: OrderedDict(image=a, aside=a.mean(), text=b)), call=from_mapping
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_however_they_are_passed_and_returned(way: str) -> None:
    net = WAYS[way]
    converted = mn.convert(net, both(), gamma=GAMMA)
    torch.testing.assert_close(converted(*both()), by_hand(net, GAMMA, both()), rtol=1e-5, atol=1e-5)
    expected = gradients(mn.convert(net, both(), gamma=GAMMA, backward="stored"))
    assert_same_gradients(gradients(converted), expected)
