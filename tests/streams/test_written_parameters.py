"""A model whose forward writes its parameters is left as it was found: values, memory and in-place counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import momentumnet as mn
from momentumnet.streams.tracing import written_parameters
from momentumnet.streams.tracing.guard import left_as_found
from tests.streams.nets import WIDTH, chain


class Branch(nn.Module):
    """Moves its teacher towards its student at each call."""

    def __init__(self, move: Callable[[Branch], None]) -> None:
        super().__init__()
        self.student, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.teacher = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.spare = nn.Embedding(4, WIDTH).requires_grad_(False)
        self.register_buffer("table", torch.ones(WIDTH))
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        self.move(self)
        y: Tensor = self.out(torch.tanh(self.student(x)))
        return y


def in_place(branch: Branch) -> None:
    with torch.no_grad():
        for teacher, student in zip(branch.teacher.parameters(), branch.student.parameters(), strict=True):
            teacher.mul_(0.9).add_(student, alpha=0.1)


def assigned(branch: Branch) -> None:
    for teacher, student in zip(branch.teacher.parameters(), branch.student.parameters(), strict=True):
        teacher.data = teacher.data * 0.9 + student.data * 0.1


def assigned_and_written(branch: Branch) -> None:
    view = branch.teacher.weight.detach()[0]
    assigned(branch)
    in_place(branch)
    view.zero_()  # of the memory that was there before


def written_and_assigned(branch: Branch) -> None:
    in_place(branch)
    assigned(branch)


def swapped(branch: Branch) -> None:
    teacher, student = branch.teacher.weight, branch.student.weight
    teacher.data, student.data = student.data, teacher.data
    teacher.data += 1.0


def of_another_size(branch: Branch) -> None:
    branch.spare.weight.data = torch.cat([branch.spare.weight.data, torch.ones(1, WIDTH)]).double()


def replaced(branch: Branch) -> None:
    with torch.no_grad():
        branch.teacher.weight.set_(branch.student.weight.clone())
        branch.teacher.weight.add_(1.0)


def shortened(branch: Branch) -> None:
    nn.functional.embedding(torch.arange(4), branch.spare.weight, max_norm=0.1)


def of_a_buffer(branch: Branch) -> None:
    branch.table.data = branch.table.data + 1.0


MOVES = [
    in_place,
    assigned,
    assigned_and_written,
    written_and_assigned,
    swapped,
    of_another_size,
    replaced,
    shortened,
    of_a_buffer,
]
WAYS: list[Callable[[nn.Module, Tensor], object]] = [
    lambda model, x: mn.find_streams(model, x),
    lambda model, x: mn.convert(model, x, gamma=1 / 8),
    lambda model, x: mn.plan(model, x, budget="least"),
    lambda model, x: mn.convert(model, x, budget="least"),
]


def network(move: Callable[[Branch], None]) -> nn.Module:
    return nn.Sequential(chain(3), Branch(move), nn.Linear(WIDTH, 4))


def state_of(model: nn.Module) -> list[tuple[Any, ...]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        (name, id(t), t.data_ptr(), t._version, t.dtype, t.stride(), t.requires_grad, t.tolist()) for name, t in tensors
    ]


@pytest.fixture(params=[0, written_parameters.COPIED_IN_FRONT], ids=["copied_when_written", "copied_in_front"])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models count as small, or not."""
    monkeypatch.setattr(written_parameters, "COPIED_IN_FRONT", request.param)


@pytest.mark.usefixtures("most")
@pytest.mark.parametrize("way", WAYS, ids=["find_streams", "convert", "plan", "convert_for_a_budget"])
@pytest.mark.parametrize("move", MOVES)
def test_parameters_are_as_they_were(
    move: Callable[[Branch], None], way: Callable[[nn.Module, Tensor], object]
) -> None:
    model = network(move)
    before = state_of(model)
    way(model, torch.randn(8, WIDTH))
    assert state_of(model) == before


@pytest.mark.usefixtures("most")
def test_parameters_that_share_their_memory() -> None:
    class Recurrent(nn.Module):
        """Two parameters that are parts of one tensor, as an LSTM's are on a GPU."""

        def __init__(self) -> None:
            super().__init__()
            both = torch.randn(2 * WIDTH, WIDTH)
            self.first, self.second = nn.Parameter(both[:WIDTH]), nn.Parameter(both[WIDTH:])

        def forward(self, x: Tensor) -> Tensor:
            for weight in (self.first, self.second):
                with torch.no_grad():
                    weight.mul_(0.5)
            return x @ (self.first + self.second)

    model = nn.Sequential(chain(3), Recurrent())
    before = state_of(model)
    mn.find_streams(model, torch.randn(8, WIDTH))
    assert state_of(model) == before


def test_what_is_not_written_is_not_copied() -> None:
    model = nn.Sequential(network(in_place), nn.Linear(3000, 3000))
    large = 4 * 3000 * 3000
    assert large > written_parameters.COPIED_IN_FRONT

    def guarded() -> None:
        with left_as_found(model, [], eval_mode=False):
            model[0](torch.randn(8, WIDTH))

    assert mn.measure_memory(guarded).peak_bytes < large / 10


@pytest.mark.usefixtures("most")
def test_without_values() -> None:
    with torch.device("meta"):
        model = network(in_place)
    before = [(name, type(p), p.device, p.shape, p._version) for name, p in model.named_parameters()]
    mn.plan(model, torch.randn(8, WIDTH, device="meta"), budget="least")
    assert [(name, type(p), p.device, p.shape, p._version) for name, p in model.named_parameters()] == before


@pytest.mark.usefixtures("most")
@pytest.mark.parametrize("move", [in_place, assigned, of_another_size])
def test_fake_tensors(move: Callable[[Branch], None]) -> None:
    with FakeTensorMode():
        model, x = network(move), torch.randn(8, WIDTH)
    before = [(name, type(p), id(p.untyped_storage()), p.shape, p._version) for name, p in model.named_parameters()]
    mn.plan(model, x, budget="least")
    after = [(name, type(p), id(p.untyped_storage()), p.shape, p._version) for name, p in model.named_parameters()]
    assert after == before


@pytest.mark.usefixtures("most")
@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm1d(WIDTH)], ids=["parameters", "and_buffers"])
def test_fake_inputs_beside_parameters_with_values(norm: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(norm(), chain(3))
    before = state_of(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert len(mn.find_streams(model, mode.from_tensor(torch.randn(8, WIDTH)))) == 1
    assert state_of(model) == before


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_compiled_code_may_write_its_parameters() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.linear.weight.mul_(2.0)
            y: Tensor = self.linear(x)
            return y.mul_(2.0)

    model = Writes()
    before = state_of(model)
    compiled = torch.compile(model, backend="eager")
    with left_as_found(model, [], eval_mode=False):
        compiled(torch.randn(8, WIDTH))
        assert state_of(model) != before
    assert state_of(model) == before


def test_compiled_code_that_writes_no_parameters_stays_in_one_graph() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y.mul_(2.0)

    model = Writes()
    x = torch.randn(8, WIDTH)
    with left_as_found(model, [], eval_mode=False):
        y = torch.compile(model, backend="eager", fullgraph=True)(x)
    assert torch.equal(y, model(x))
