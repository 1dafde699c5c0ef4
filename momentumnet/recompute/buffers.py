"""The buffers of a call: which ones it changed, what it saw in them before, and what it only read."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.arguments import version
from momentumnet.recompute.buffers_on_demand import kept_on_demand
from momentumnet.recompute.generators import AS_IT_IS, bytes_on_host
from momentumnet.recompute.statistics_read import Learned, learned_of, reads_noted
from momentumnet.recompute.uncompiled import is_compiled

# Tensors, and their values.
Clones = list[tuple[list[Tensor], list[Tensor]]]

_NO_TABLE: dict[str, Tensor | None] = {}
_NO_NAMES: dict[str, bool] = {}
FEW = 1024  # elements of a tensor that are copied without a reason
_NUMBERS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)


class _Before(NamedTuple):
    """A buffer in front of a call, its counter, and a copy."""

    owner: nn.Module
    name: str
    buffer: Tensor
    counter: int
    value: Tensor

    @property
    def is_written_unseen(self) -> bool:
        """Whether it holds something else now, though its counter has not moved; on a GPU nobody looks."""
        buffer, value = self.buffer, self.value
        if type(buffer) is not Tensor or type(value) is not Tensor or not buffer.is_floating_point():
            return False
        plain = buffer.is_cpu and buffer.layout == torch.strided and buffer.is_contiguous()
        if not plain or torch._C._functorch.is_functorch_wrapped_tensor(buffer) or buffer.shape != value.shape:
            return False
        return version(buffer) == self.counter and bytes_on_host(buffer) != bytes_on_host(value)


class Buffers:
    """Which buffers a call changed, what it saw in them before, and what it only read.

    Running statistics (all of torch's norm modules) change without a trace in the in-place counter, but their training
    forward does not read them, where it is torch's own, and nor does their block, as its first call has shown; other
    buffers (spectral norm's u) are compared by counter and identity, and their earlier value is kept where they
    changed, or may have without a trace (fused observers). Those that the call left as they were have to stay so until
    backward. Which names there were, and which of them were None, is known in any case: a first call may fill them, or
    register or delete some.
    """

    def __init__(self, owners: list[nn.Module]) -> None:
        self._owners = owners
        self._before: list[_Before] = []
        self._read: list[tuple[nn.Module, str, Tensor, int]] = []
        self._moved_unseen = _moved_unseen(owners)
        self._tables = _tables(owners)
        # By name, whether it was None.
        self._names = [
            {name: buffer is None for name, buffer in table.items()} if table else _NO_NAMES for table in self._tables
        ]
        self._learned: Learned | None = None
        self._moving: list[nn.Module] = []
        self._is_watched = False
        if holding := [owner for owner in owners if owner._buffers]:
            self._look_at(owners, holding)
        self._seen: list[tuple[nn.Module, str, Tensor]] = []
        self._running: Clones = []
        self._may_be_taken_back = False

    def _look_at(self, owners: list[nn.Module], holding: list[nn.Module]) -> None:
        self._learned = learned = learned_of(owners[0])
        self._moving = moving = [owner for owner in holding if _only_moves(owner)]
        if not learned.knows(moving):
            self._is_watched = not any(map(is_compiled, owners))
            if not self._is_watched:
                learned.have_watched(moving)
        only_move = set(map(id, moving))
        keeps_some = self._is_watched or learned.places
        for owner in holding:
            only_moves = id(owner) in only_move
            if only_moves and not keeps_some:
                continue
            for name, buffer in owner._buffers.items():
                is_kept = not only_moves or self._is_watched or (id(owner), name) in learned.places
                if buffer is None or not is_kept:
                    continue
                if isinstance(owner, _NormBase) and not owner.training:
                    self._read.append((owner, name, buffer, version(buffer)))
                else:
                    self._before.append(_Before(owner, name, buffer, version(buffer), buffer.detach().clone()))

    def watched(self) -> AbstractContextManager[None]:
        """Context of the first run: of a block's first call it notes which running statistics the block reads."""
        if not self._is_watched or self._learned is None or not self._moving:
            return AS_IT_IS
        return reads_noted(self._moving, self._learned.places)

    def kept_for_another_first_run(self) -> None:
        """Keep the running statistics, too: what `put_back` needs."""
        moving = [
            buffer
            for owner in self._owners
            if _only_moves(owner)
            for buffer in owner._buffers.values()
            if buffer is not None
        ]
        self._may_be_taken_back = True
        self._running = _clones(moving)

    def put_back(self) -> None:
        """As if the call had not been: every buffer is the tensor that it was, and holds what it held before."""
        _make_as(self._owners, self._tables)
        _write_back(self._running)
        for owner, name, value in self._seen:
            place = owner._buffers[name]
            if place is not None:
                _give(place, value)

    def forget_running(self) -> None:
        self._running, self._tables = [], []

    def forget_unchanged(self) -> None:
        if not self._may_be_taken_back:
            self._tables = []
        if self._learned is not None and self._is_watched:
            self._learn(self._learned)
        if not self._before:
            return
        only_move = set(map(id, self._moving))
        learned = self._learned.places if self._learned is not None else ()
        for owner, name, buffer, counter, value in self._before:
            is_learned, only_moves = (id(owner), name) in learned, id(owner) in only_move
            if is_learned or (not only_moves and (version(buffer) != counter or owner in self._moved_unseen)):
                self._seen.append((owner, name, value))
            elif not only_moves:
                self._read.append((owner, name, buffer, counter))
        self._before = []

    @property
    def norms_read(self) -> Sequence[nn.Module]:
        """Norms in training whose running statistics the block reads."""
        if self._learned is None or not self._learned.places:
            return ()
        owners = {number for number, _ in self._learned.places}
        return [norm for norm in self._moving if id(norm) in owners]

    def _learn(self, learned: Learned) -> None:
        """A call that was watched is over: which buffers it has moved past their counters."""
        only_move = set(map(id, self._moving))
        learned.places.update(
            (id(before.owner), before.name)
            for before in self._before
            if id(before.owner) not in only_move and before.is_written_unseen
        )
        learned.have_watched(self._moving)

    def check_unchanged(self, block: str) -> None:
        for _, name, buffer, counter in self._read:
            if version(buffer) != counter:
                raise ReconstructionError(
                    f"block {block!r}: buffer {name!r} was changed between forward and backward, so the gradient of "
                    "that forward cannot be computed any more; change it after backward (under DistributedDataParallel "
                    "a further forward does it: pass broadcast_buffers=False)"
                )

    def replayed(self, untouched: Sequence[nn.Module] = ()) -> AbstractContextManager[None]:
        """Context that runs with the buffers as the call saw them; whatever the run does to them is undone.

        Args:
            untouched: modules whose own calls leave their buffers alone: the values are kept only if somebody else
                asks for one of them.
        """
        found = any(self._names) or any(owner._buffers for owner in self._owners)
        return self._replayed(untouched) if found else AS_IT_IS

    @contextmanager
    def _replayed(self, untouched: Sequence[nn.Module]) -> Iterator[None]:
        tables = _tables(self._owners)
        now = dict(zip(map(id, self._owners), tables, strict=True))
        # Another tensor stands there now: it was assigned anew, or torch.func.functional_call has taken it out.
        swapped = [
            (owner, name, buffer) for owner, name, buffer, _ in self._read if now[id(owner)].get(name) is not buffer
        ]
        seen = {(id(owner), name): (owner, value) for owner, name, value in (*self._seen, *swapped)}
        on_demand = {id(owner) for owner in untouched}
        current, later = self._split(tables, seen, on_demand)
        kept = _clones(current)

        def keep() -> None:
            nonlocal later
            kept.extend(_clones(later))
            later = []

        try:
            for owner, names, table in zip(self._owners, self._names, tables, strict=True):
                if table or names:
                    _take_out(owner._buffers, names)
            self._give_again(seen, tables, now)
            with kept_on_demand(untouched, keep):
                yield
        finally:
            _make_as(self._owners, tables)
            # What was kept later may lie in the memory of what was kept before, which is right.
            _write_back(kept[::-1])

    def _give_again(
        self,
        seen: Mapping[tuple[int, str], tuple[nn.Module, Tensor]],
        tables: Sequence[Mapping[str, Tensor | None]],
        now: Mapping[int, Mapping[str, Tensor | None]],
    ) -> None:
        """Buffers with the values that the call saw in them; one under several names is one again.

        Each in a tensor of its own: the recompute may save it for backward, and must not see it put back.
        """
        again: dict[int, Tensor] = {}
        for (number, name), (owner, value) in seen.items():
            standing = now[number].get(name)
            key = id(value if standing is None else standing)
            owner._buffers[name] = again[key] = again[key] if key in again else value.clone()
        for owner, table in zip(self._owners, tables, strict=True) if again else ():
            for name, buffer in table.items():
                if id(buffer) in again and (id(owner), name) not in seen:
                    owner._buffers[name] = again[id(buffer)]

    def _split(
        self,
        tables: Sequence[dict[str, Tensor | None]],
        seen: Mapping[tuple[int, str], object],
        on_demand: Collection[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The buffers whose values are kept in a recompute: in any case, and if they are asked for."""
        now: list[Tensor] = []
        later: list[Tensor] = []
        for owner, table in zip(self._owners, tables, strict=True):
            for name, buffer in table.items():
                # A large integer buffer changes only if its counter said so in forward; a count may have gone through
                # .data.
                if buffer is not None and (
                    buffer.is_floating_point() or buffer.numel() <= FEW or (id(owner), name) in seen
                ):
                    (later if id(owner) in on_demand else now).append(buffer)
        return now, later


def _tables(owners: Sequence[nn.Module]) -> list[dict[str, Tensor | None]]:
    """The buffers of each by name, not to be written to."""
    return [dict(owner._buffers.items()) if owner._buffers else _NO_TABLE for owner in owners]


def _take_out(table: dict[str, Tensor | None], names: Mapping[str, bool]) -> None:
    """Buffers that there were not are not there, and those that were None are None."""
    for name in [name for name in table.keys() if name not in names]:  # noqa: SIM118 (a script's table is no dict)
        del table[name]
    for name, was_none in names.items():
        if was_none:
            table[name] = None


def _make_as(owners: Sequence[nn.Module], tables: Sequence[dict[str, Tensor | None]]) -> None:
    """The very tensors, in their order, stand under the same names again."""
    for owner, before in zip(owners, tables, strict=True):
        table = owner._buffers
        if not (table or before):
            continue
        if list(table.keys()) != list(before):
            table.clear()
            table.update(before)
        for name, buffer in before.items():
            if table[name] is not buffer:
                table[name] = buffer


def _only_moves(owner: nn.Module) -> bool:
    """Whether it is a norm in training that moves its statistics and does not read them: its forward is torch's."""
    if not (isinstance(owner, _NormBase) and owner.training):
        return False
    return isinstance(owner, torch.jit.ScriptModule) or type(owner).forward.__module__.startswith("torch.nn.modules.")


def _moved_unseen(owners: list[nn.Module]) -> list[nn.Module]:
    """Those whose buffers are written by kernels that count nothing.

    The observers of quantisation-aware training, by a fused one, and norms with a forward of their own that may read
    their statistics (batch renormalisation), by torch's.
    """
    norms: list[nn.Module] = [owner for owner in owners if isinstance(owner, _NormBase)]
    norms = [norm for norm in norms if norm.training and not _only_moves(norm)]
    fake_quantize = sys.modules.get("torch.ao.quantization.fake_quantize")
    fused = getattr(fake_quantize, "FusedMovingAvgObsFakeQuantize", None)
    if fused is None:
        return norms
    return norms + [module for owner in owners if isinstance(owner, fused) for module in owner.modules()]


def _give(place: Tensor, value: Tensor) -> None:
    """The buffer has a value again, of whatever size: an observer takes its size from its first call."""
    if place.shape != value.shape:
        place.resize_(value.shape)
    place.data.copy_(value)


def _clones(buffers: Iterable[Tensor]) -> Clones:
    """The buffers and their values. Those of one type and device together, which is one launch on a GPU.

    There, numbers of 4 and 8 bytes go together, too, as words: the statistics of norms and their counts.
    """
    groups: dict[object, list[Tensor]] = {}
    for buffer in buffers:
        apart, part = id(buffer), buffer.detach()
        if _goes_with_others(buffer):
            apart, part = 0, _words(part) if buffer.is_cuda else part
        groups.setdefault((part.dtype, part.device, apart), []).append(part)
    return [(own, _copies(own)) for own in groups.values()]


def _words(buffer: Tensor) -> Tensor:
    """The memory of its numbers as 32-bit words; itself where they are narrower, or do not lie side by side."""
    if buffer.element_size() < 4 or not buffer.is_contiguous():
        return buffer
    return buffer.reshape(-1).view(torch.int32)


def _copies(buffers: list[Tensor]) -> list[Tensor]:
    """Of the very bits: what adds 0 or multiplies by 1 does not keep those of -0 and NaN."""
    if len(buffers) == 1:
        return [buffers[0].clone()]
    values = [torch.empty_like(buffer) for buffer in buffers]
    torch._foreach_copy_(values, buffers)
    return values


def _goes_with_others(buffer: Tensor) -> bool:
    plain = type(buffer) is Tensor and buffer.layout == torch.strided and buffer.dtype in _NUMBERS
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(buffer)


def _write_back(clones: Clones) -> None:
    """The buffers hold again what they held.

    Through .data: the in-place counter does not move, so graphs that saved a buffer stay valid.
    """
    for buffers, values in clones:
        if len(buffers) > 1:
            torch._foreach_copy_([buffer.data for buffer in buffers], values)
        else:
            buffers[0].data.copy_(values[0])
