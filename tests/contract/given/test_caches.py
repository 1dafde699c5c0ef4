"""Objects that blocks are given and write to, key-value caches above all: a recompute sees what the first run saw."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import ConversionError, ReconstructionError
from momentumnet.memory import measure_memory
from momentumnet.recompute.arguments import caches
from tests.contract.given.cached_nets import (
    BLOCKS,
    LENGTH,
    WIDTH,
    Attention,
    Decoder,
    KeyCache,
    Notebook,
    OtherName,
    both,
    tokens,
)
from tests.contract.reference import assert_same, relative_error, train_step


@pytest.mark.parametrize("kind", [Decoder, OtherName])
@pytest.mark.parametrize("cache", [KeyCache, Notebook])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_cache_that_blocks_fill(kind: type[Decoder], cache: type[KeyCache], *, training: bool) -> None:
    torch.manual_seed(0)
    stored, reversible = both(kind(cache).train(training))
    assert_same(train_step(reversible, (tokens(),)), train_step(stored, (tokens(),)))


def test_in_training_a_cache_is_not_filled_and_takes_no_memory() -> None:
    torch.manual_seed(0)
    net = mn.convert(Decoder(KeyCache), tokens())
    without = copy.deepcopy(net)
    without.make = lambda: None
    held = []
    for decoder in (net, without):
        step = lambda decoder=decoder: train_step(decoder, (tokens(),))  # noqa: E731
        step()
        held.append(measure_memory(step))
    assert all(layer.keys is None for layer in net.given.layers)
    assert held[0].saved_bytes <= 1.05 * held[1].saved_bytes
    assert held[0].peak_bytes <= 1.05 * held[1].peak_bytes


def test_without_gradients_and_in_eval_mode_a_cache_is_filled() -> None:
    torch.manual_seed(0)
    net = mn.convert(Decoder(KeyCache), tokens())
    with torch.no_grad():
        net(tokens())
    assert all(layer.keys is not None for layer in net.given.layers)
    net.eval()(tokens())
    assert all(layer.keys is not None for layer in net.given.layers)


def test_a_prefix_is_read_gets_its_gradient_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    stored, reversible = both(Decoder(KeyCache))
    gradients = []
    for net in (stored, reversible):
        torch.manual_seed(2)
        prefix = torch.randn(BLOCKS, 2, 3, WIDTH, requires_grad=True)

        def filled(prefix: Tensor = prefix) -> KeyCache:
            cache = KeyCache()
            for layer, keys in zip(cache.layers, 2 * prefix, strict=True):  # not leaves
                layer.keys = keys
            return cache

        net.make = filled
        outcome = train_step(net, (tokens(),))
        outcome.gradients["prefix"] = prefix.grad
        gradients.append(outcome)
    assert_same(gradients[1], gradients[0])
    assert [layer.keys.shape[1] for layer in reversible.given.layers] == [3] * BLOCKS


def test_it_says_once_that_a_cache_is_not_filled(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(caches, "_TOLD", set())
    torch.manual_seed(0)
    net = mn.convert(Decoder(KeyCache), tokens())
    with caplog.at_level(logging.WARNING, logger="momentumnet"):
        for _ in range(2):
            train_step(net, (tokens(),))
    (record,) = [record for record in caplog.records if "cache" in record.message]
    assert "KeyCache" in record.message
    assert "use_cache=False" in record.message


def test_nothing_is_said_of_a_cache_that_is_only_read(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    class Table:
        def __init__(self) -> None:
            self.rows = torch.ones(WIDTH)

        def update(self, index: int, keys: Tensor) -> Tensor:
            return keys * self.rows

    monkeypatch.setattr(caches, "_TOLD", set())
    net = mn.convert(Decoder(Table), tokens())
    with caplog.at_level(logging.WARNING, logger="momentumnet"):
        train_step(net, (tokens(),))
    assert not [record for record in caplog.records if "cache" in record.message]


class Placed:
    """Keeps its place itself, and writes there: a second update would go to the next place."""

    def __init__(self) -> None:
        self.count: dict[int, int] = {}
        self.rows: dict[int, Tensor] = {}

    def update(self, index: int, keys: Tensor) -> Tensor:
        place = self.count.get(index, 0)
        self.count[index] = place + 1
        rows = self.rows.setdefault(index, torch.zeros(3, *keys.shape))
        return rows.index_copy_(0, torch.tensor([place]), keys[None])[0]


@pytest.mark.parametrize("kind", [Decoder, OtherName])
def test_a_place_kept_in_python(kind: type[Decoder]) -> None:
    torch.manual_seed(0)
    stored, reversible = both(kind(Placed))
    outcomes = [train_step(net, (tokens(),)) for net in (stored, reversible)]
    assert relative_error(outcomes[1], outcomes[0]) <= 1e-6


class Counted(KeyCache):
    """Counts in tensors, in place, as transformers' StaticCache does."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = [torch.zeros(()) for _ in range(BLOCKS)]

    def update(self, index: int, keys: Tensor) -> Tensor:
        self.counts[index].add_(1)
        return super().update(index, keys) * self.counts[index]


@pytest.mark.parametrize("kind", [Decoder, OtherName])
def test_a_counter_that_is_a_tensor(kind: type[Decoder]) -> None:
    torch.manual_seed(0)
    stored, reversible = both(kind(Counted))
    assert_same(train_step(reversible, (tokens(),)), train_step(stored, (tokens(),)))
    assert [int(count) for count in reversible.given.counts] == [int(kind is OtherName)] * BLOCKS


class Buffers(KeyCache):
    """As transformers' StaticCache with content: tensors of full size, which are written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.end = 2
        for layer in self.layers:
            layer.keys = torch.randn(2, 100, WIDTH)

    def update(self, index: int, keys: Tensor) -> Tensor:
        kept = self.layers[index].keys
        assert kept is not None
        kept[:, self.end : self.end + LENGTH] = keys
        return kept


@pytest.mark.parametrize("kind", [Decoder, OtherName])
def test_tensors_written_in_place_are_refused_with_the_cure(kind: type[Decoder]) -> None:
    net = mn.convert(kind(Buffers), tokens())
    with pytest.raises(ReconstructionError, match=r"layers\.\d.*Buffers.*use_cache=False"):
        train_step(net, (tokens(),))


def test_a_cache_that_refuses_to_be_copied_is_refused_before_the_first_block() -> None:
    class Alone(KeyCache):
        def __copy__(self) -> Alone:
            raise TypeError("there is one of me")

    net = mn.convert(Decoder(KeyCache), tokens())
    net.make = Alone
    with pytest.raises(ConversionError, match=r"layers\.0.*'cache' \(Alone\).*use_cache=False"):
        net(tokens())
    assert net.given.layers[0].keys is None


class Whole(nn.Module):
    """A composite module outside the stream that appends to the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = Attention(0), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, cache: Any) -> Tensor:
        return self.head(self.attention(x, cache))


class WithHead(Decoder):
    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__(make)
        self.whole = Whole()

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.own = KeyCache(1)
        return self.whole(2 * x, self.own)


def test_modules_outside_that_are_recomputed() -> None:
    torch.manual_seed(0)
    model = WithHead(KeyCache)
    stored = mn.convert(model, tokens(), backward="stored")
    reversible = mn.convert(model, tokens(), others="checkpoint")
    assert_same(train_step(reversible, (tokens(),)), train_step(stored, (tokens(),)))
    assert reversible.own.layers[0].keys is None
