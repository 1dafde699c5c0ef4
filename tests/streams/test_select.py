"""Which of several possible calls are chosen as blocks."""

from __future__ import annotations

from torch import nn

from momentumnet.streams import find_streams
from tests.streams import nets
from tests.streams.nets import Block, Calls, chain, loop, modules, summary, tokens


def test_plain_containers_are_opened_and_runs_cross_them():
    model = nn.Sequential(chain(2), nn.Sequential(chain(1), chain(2)))
    (stream,) = find_streams(model, tokens())
    assert stream.blocks == ("0.0", "0.1", "1.0", "1.1.0", "1.1.1")  # opening "1.0" gives no further link
    assert stream.path == ""


def test_the_outermost_run_of_one_class_is_kept():
    model = Calls(loop, layers=modules(3, nets.Stage))
    assert summary(model, tokens()) == [("layers", 3, "additive")]
    alone = Calls(loop, layers=modules(1, nets.Stage))
    assert summary(alone, tokens()) == [("layers.0.blocks", 2, "additive")]


def test_runs_of_mixed_classes_are_opened_where_that_gives_more_links():
    model = nn.Sequential(Block(), nets.Stage())
    (stream,) = find_streams(model, tokens())
    assert stream.blocks == ("0", "1.blocks.0", "1.blocks.1")
