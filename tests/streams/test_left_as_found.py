"""A trace leaves nothing behind: neither on modules, nor in what stands on them, nor in the caller's objects."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.errors import ConversionError
from momentumnet.streams import find_streams
from tests.streams.nets import WIDTH, Block, Calls, chain, tokens


class Store:
    """An object that is no module."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {"list": [], "count": 0}


class Remembers(Block):
    """Keeps what it computed in every place where a module can keep something."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, Tensor] = {}
        self.store = Store()
        self.plain = torch.zeros(WIDTH)
        self.nested = {"deep": (torch.zeros(WIDTH),)}
        self.register_buffer("buffer", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        row = y.sum((0, 1))
        self.table[str(x.device)] = row
        self.store.rows["list"].append(row)
        self.store.rows["count"] += 1
        self.plain += row
        self.nested["deep"][0].add_(row.detach())
        self.buffer = self.buffer + row
        self.late = row
        self.register_parameter("later", nn.Parameter(torch.zeros(1)))
        self.inner = nn.Linear(1, 1)
        return y


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_a_trace_stays(*, training: bool) -> None:
    model = nn.Sequential(Remembers(), Remembers()).train(training)
    names = [list(vars(block)) for block in model]
    state = list(model.state_dict())
    converted = mn.convert(model, tokens())
    for block, before in zip(model, names, strict=True):
        assert list(vars(block)) == before
        assert block.table == {}
        assert block.store.rows == {"list": [], "count": 0}
        for tensor in (block.plain, block.nested["deep"][0], block.buffer):
            assert tensor.tolist() == [0.0] * WIDTH
            assert tensor.grad_fn is None
    assert list(model.state_dict()) == state
    assert list(converted.state_dict()) == state
    copy.deepcopy(model)


def test_an_object_among_the_example_inputs_is_not_written_to() -> None:
    def forward(self: Any, x: Tensor, cache: Store) -> Tensor:
        cache.rows["list"].append(x)
        cache.rows["tensor"].add_(1)
        return self.layers(x)

    model, cache = Calls(forward, layers=chain(2)), Store()
    cache.rows["tensor"] = torch.zeros(1)
    assert len(find_streams(model, (tokens(), cache))) == 1
    assert cache.rows["list"] == []
    assert cache.rows["tensor"].tolist() == [0]


def test_a_model_that_cannot_be_copied_says_where_and_why() -> None:
    model = nn.Sequential(Remembers(), Remembers())
    model(tokens())
    with pytest.raises(ConversionError, match=r"of module '0' holds a tensor.*inplace=True"):
        mn.convert(model, tokens())
    mn.convert(model, tokens(), inplace=True)


class HooksItself(nn.Module):
    """Hooks its layers in its first forward, and remembers that it has, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain(3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "hooked"):
            for layer in self.layers:
                layer.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.hooked = True
        self.seen.clear()
        y: Tensor = self.layers(x)
        return y


def test_hooks_that_a_forward_installs_are_taken_out_with_the_mark_of_them():
    model = HooksItself()
    for _ in range(2):
        assert [len(stream) for stream in find_streams(model, tokens())] == [3]
    model(tokens())
    assert len(model.seen) == 3


class RescaledForInference(nn.Module):
    """Divides weights in place the first time that it runs in eval mode, as RWKV does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain(4)
        self.is_rescaled = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training == self.is_rescaled:
            with torch.no_grad():
                for count, parameter in enumerate(self.parameters()):
                    self._rescale(count, parameter)
            self.is_rescaled = not self.training
        return self.layers(x)

    def _rescale(self, count: int, parameter: Tensor) -> None:
        factor = 0.5 if self.is_rescaled else 2.0
        if count % 4 == 0:
            parameter.div_(factor)
        elif count % 4 == 1:
            parameter.data /= factor
        elif count % 4 == 2:
            torch.div(parameter, factor, out=parameter)
        else:
            parameter[0] = parameter[0] / factor


@pytest.mark.parametrize("training", [True, False])
def test_weights_that_a_forward_rescales(*, training: bool) -> None:
    model = RescaledForInference().train(training)
    before = copy.deepcopy(model.state_dict())
    (stream,) = find_streams(model, tokens())
    assert len(stream) == 4
    assert not model.is_rescaled
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    x = tokens()
    assert torch.equal(mn.convert(model.train(), x, backward="stored")(x), mn.convert(model, x)(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


each_way = pytest.mark.parametrize(
    "way",
    [
        lambda model, x: find_streams(model, x),
        lambda model, x: mn.convert(model, x),
        lambda model, x: mn.plan(model, x, budget="least"),
    ],
    ids=["find_streams", "convert", "plan"],
)


@each_way
def test_generators_of_python_and_numpy(way: Callable[[nn.Module, Tensor], object]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        np.random.normal()  # noqa: NPY002 (of two numbers that it makes, one waits in the state)
        return self.layers(x * random.random() * np.random.rand())  # noqa: NPY002

    def draws() -> list[float]:
        return [random.random(), np.random.normal(), np.random.rand()]  # noqa: NPY002

    model, x = Calls(forward, layers=chain(2)), tokens()
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = draws()
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    way(model, x)
    assert draws() == expected


@each_way
def test_generators_and_arrays_on_attributes(way: Callable[[nn.Module, Tensor], object]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.counts += 1
        self.held["rows"][0][...] = x.detach().mean((0, 1)).numpy()
        return self.layers(x * sum(drawn(self)))

    def drawn(model: Any) -> list[float]:
        sources, store = model.held["sources"], model.store.rows["source"]
        own = float(torch.rand((), generator=model.source)), model.plain.random(), model.numpys.random()
        return [*own, float(torch.rand((), generator=sources[0])), sources[1].random(), store.rand()]

    def made() -> Any:
        model = Calls(forward, layers=chain(2))
        model.source, model.plain, model.numpys = torch.Generator(), random.Random(3), np.random.default_rng(3)
        model.counts, model.store = np.zeros(5000), Store()
        model.store.rows["source"] = np.random.RandomState(3)
        model.held = {"sources": [torch.Generator(), random.Random(4)], "rows": [np.zeros(WIDTH)]}
        return model

    model, x = made(), tokens()
    way(model, x)
    assert drawn(model) == drawn(made())
    assert not model.counts.any()
    assert not model.held["rows"][0].any()


def test_generators_among_the_example_inputs() -> None:
    def forward(self: Any, x: Tensor, sources: dict[str, Any]) -> Tensor:
        return self.layers(x * torch.rand((), generator=sources["torch"]) * sources["python"].random())

    sources = {"torch": torch.Generator(), "python": random.Random(3)}
    model, example = Calls(forward, layers=chain(2)), (tokens(), sources)
    converted = mn.convert(model, example)
    mn.plan(model, example)
    mn.compare_outputs(model, converted, [example])
    assert torch.equal(torch.rand(4, generator=sources["torch"]), torch.rand(4, generator=torch.Generator()))
    assert sources["python"].random() == random.Random(3).random()
