"""Argument objects and threads in a pass that is played again, as a value in it outgrew its scale."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

import momentumnet as mn
from tests.contract.reference import loss_of
from tests.models import WIDTH, ResidualMLP

HUGE = 1e6  # times a branch: past the headroom of any scale that was chosen for branches of 1


class Notes:
    """What blocks write, and what those behind them read."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.average = torch.zeros(WIDTH)
        self.large = torch.zeros(200, WIDTH)
        self.level = torch.ones(())
        self.calls = 0


class Uncopyable(Notes):
    def __copy__(self) -> Notes:
        raise TypeError("no copies")


class NotesCache(Notes):
    """A cache by its name: blocks do not fill it in training."""


def appended(notes: Any, x: Tensor) -> Tensor:
    notes.keys.append(x.tanh())
    return torch.stack(notes.keys).mean(0)


def replaced(notes: Any, x: Tensor) -> Tensor:
    before = notes.keys[-1:]
    notes.keys = [x.sin()]
    return before[0] if before else x


def large_without_gradient(notes: Any, x: Tensor) -> Tensor:
    notes.large = notes.large.roll(1, 0) + x.detach().mean(0)
    return notes.large.mean(0).tanh()


def small_in_place(notes: Any, x: Tensor) -> Tensor:
    notes.average.mul_(0.5).add_(x.detach().mean(0))
    return notes.average.tanh()


def small_replaced(notes: Any, x: Tensor) -> Tensor:
    before, notes.level = notes.level, x.detach().abs().mean()
    return before.log1p()


def counted(notes: Any, x: Tensor) -> Tensor:
    notes.calls += 1
    return x.tanh() * notes.calls


def stream_itself(notes: Any, x: Tensor) -> Tensor:
    notes.keys.append(x)
    return notes.keys[0].tanh() * notes.keys[-1].cos()


USES = [appended, replaced, large_without_gradient, small_in_place, small_replaced, counted, stream_itself]


class Noting(ResidualMLP):
    factor = 1.0

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use

    def forward(self, x: Tensor, notes: Any) -> Tensor:
        return x + self.factor * self.inner(x + self.use(notes, x))


class Parent(nn.Module):
    def __init__(self, use: Callable[[Any, Tensor], Tensor], *, by_keyword: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Noting(use) for _ in range(5))
        self.by_keyword = by_keyword

    def forward(self, x: Tensor, notes: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, notes=notes) if self.by_keyword else block(x, notes)
        return x


def rows() -> Tensor:
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(1))


def nets(
    use: Callable[[Any, Tensor], Tensor], place: int, recomputed: str = "reversible", **options: Any
) -> list[nn.Module]:
    """Stored and reversible, behind one ordinary step, with a huge branch at ``place`` then."""
    torch.manual_seed(0)
    model = Parent(use, **options)
    found = [mn.convert(model, streams=["blocks"], gamma=0.5, backward=backward) for backward in ("stored", recomputed)]
    for net in found:
        loss_of(net(rows(), Notes())).backward()
        net.zero_grad(set_to_none=True)
        net.blocks[place].factor = HUGE
    return found


def step(net: nn.Module, notes: Any) -> list[Tensor]:
    """Output, gradients, and what stands in the notes."""
    x = rows().requires_grad_()
    y = net(x, notes)
    left = [notes.average, notes.large, notes.level, *notes.keys] if isinstance(notes, Notes) else []
    left = [tensor.detach().clone() for tensor in left]
    (loss_of(y) + sum(key.mean() for key in getattr(notes, "keys", []))).backward()
    return [y.detach(), x.grad, *left, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize(
    ("by_keyword", "backward"), [(False, "reversible"), (True, "reversible"), (True, "checkpointed")]
)
@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("use", USES)
def test_objects_reach_the_blocks_as_in_a_run_that_went_right(
    use: Callable[[Any, Tensor], Tensor], place: int, by_keyword: bool, backward: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored, net = nets(use, place, backward, by_keyword=by_keyword)
    expected = step(stored, Notes())
    with caplog.at_level(logging.WARNING, "momentumnet"):
        got = step(net, Notes())
    assert "played again" in caplog.text
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_containers_that_blocks_write_into(caplog: pytest.LogCaptureFixture) -> None:
    """Lists and dicts are the parent's own, and blocks read what others wrote there."""

    def remembered(notes: dict[str, list[Tensor]], x: Tensor) -> Tensor:
        notes["keys"] = [*notes.get("keys", [])[-1:], x.tanh()]
        return torch.stack(notes["keys"]).mean(0)

    torch.manual_seed(0)
    found, model = [], Parent(remembered)
    for backward in ("stored", "reversible"):
        net = mn.convert(model, streams=["blocks"], gamma=0.5, backward=backward)
        loss_of(net(rows(), {})).backward()
        net.zero_grad(set_to_none=True)
        net.blocks[1].factor = HUGE
        notes: dict[str, list[Tensor]] = {}
        y = net(rows(), notes)
        kept = [key.detach().clone() for key in notes["keys"]]
        loss_of(y).backward()
        found.append([y.detach(), *kept, *(p.grad for p in net.parameters())])
    assert "played again" in caplog.text
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_caches_are_lent_again(caplog: pytest.LogCaptureFixture) -> None:
    """In training no block fills a cache, in the first run or in the one that is made over."""
    stored, net = nets(appended, 1)
    caches = [NotesCache(), NotesCache()]
    for cache in caches:
        cache.keys = [torch.ones(6, WIDTH)]
    got = step(net, caches[1])
    alone = [one.detach() for one in _each_alone(stored, caches[0])]
    assert "played again" in caplog.text
    torch.testing.assert_close(got[0], alone[-1], rtol=0, atol=0)
    assert len(caches[1].keys) == 1


def test_caches_are_filled_in_eval_mode(caplog: pytest.LogCaptureFixture) -> None:
    """With gradients: they are the model's own then, and hold what a run that went right leaves there."""
    stored, net = nets(appended, 1)
    got, expected = step(net.eval(), NotesCache()), step(stored.eval(), NotesCache())
    assert "played again" in caplog.text
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def _each_alone(net: nn.Module, cache: NotesCache) -> list[Tensor]:
    """The stream, each block with a cache of its own as the model was given it."""
    x, found = rows(), []
    for block in net.blocks:
        mine = NotesCache()
        mine.keys = list(cache.keys)
        x = block(x, mine)
        found.append(x)
    return found


@pytest.mark.parametrize("use", [counted, appended, small_in_place])
def test_object_that_refuses_to_be_copied_and_was_changed_is_refused(use: Callable[[Any, Tensor], Tensor]) -> None:
    _, net = nets(use, 1)
    with pytest.raises(mn.StateRangeError, match="run this step again"):
        net(rows(), Uncopyable())


def test_object_that_refuses_to_be_copied_and_is_only_read_is_fine(caplog: pytest.LogCaptureFixture) -> None:
    stored, net = nets(lambda notes, x: x * notes.level, 1)
    got, expected = step(net, Uncopyable()), step(stored, Uncopyable())
    assert "played again" in caplog.text
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_tensors_in_a_set_are_refused() -> None:
    def put_in_a_set(notes: Any, x: Tensor) -> Tensor:
        notes.keys = {*notes.keys, x.tanh()}
        return sum(notes.keys) / len(notes.keys)

    _, net = nets(appended, 1)
    for block in net.blocks:
        block.use = put_in_a_set
    with pytest.raises(mn.StateRangeError, match="run this step again"):
        net(rows(), Notes())


def test_another_number_of_tensors_is_refused() -> None:
    """A block that writes what it did not write in the first run: nobody knows which tensor stands for which."""
    calls = iter(range(5))

    def first_run_only(notes: Any, x: Tensor) -> Tensor:
        notes.keys.append(x.tanh())
        if net.blocks[1].factor == HUGE and next(calls, None) is not None:
            notes.keys.append(x.tanh())
        return notes.keys[0]

    _, net = nets(appended, 1)
    for block in net.blocks:
        block.use = first_run_only
    with pytest.raises(mn.StateRangeError, match="run this step again"):
        net(rows(), Notes())


def test_hooks_of_another_thread_are_no_matter_of_a_pass_that_is_played_again() -> None:
    """One thread plays a pass again while another one enters saved-tensor hooks, and both leave torch as it was."""
    entered, begun, failed = saved_tensors_hooks.__enter__, threading.Barrier(2, timeout=60), []
    runs = threading.local()

    def meeting(notes: Any, x: Tensor) -> Tensor:
        runs.count = getattr(runs, "count", 0) + 1
        if runs.count == 6:  # the first block, called for the second time: the pass is played again
            begun.wait()
            with save_on_cpu() if notes.calls else torch.enable_grad():
                pass
            begun.wait()
        return x

    stored, net = nets(lambda notes, x: x, 1)
    for block in net.blocks:
        block.use = meeting
    _, hooked = nets(lambda notes, x: x, 1)
    for block in hooked.blocks:
        block.use = meeting
    got: dict[str, list[Tensor]] = {}

    def plain() -> None:
        got["plain"] = step(net, Notes())

    def with_hooks() -> None:
        notes = Notes()
        notes.calls = 1
        try:
            hooked(rows(), notes)
        except mn.StateRangeError as error:
            failed.append(error)

    threads = [threading.Thread(target=plain), threading.Thread(target=with_hooks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 1  # the thread with hooks of its own
    for mine, theirs in zip(got["plain"], step(stored, Notes()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert saved_tensors_hooks.__enter__ is entered
