"""What blocks keep and write in place: tensors in containers, NumPy's arrays, and random generators of their own.

Tensors get a stand-in for the time of a recompute, which may save it for backward. Arrays and generators are put back
where they are: nobody differentiates through them.
"""

from __future__ import annotations

import enum
import math
import pickle
import random
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from momentumnet.recompute.surroundings.generators import bytes_on_host
from momentumnet.recompute.values.buffer_values import COPIED_ANYWAY
from momentumnet.recompute.values.objects import is_array, repeats


def is_written(tensor: Tensor, counter: int, value: Tensor | None) -> bool:
    """Whether a tensor has been written to since; on the CPU also where its counter does not tell.

    Args:
        tensor: which.
        counter: its in-place counter then.
        value: a copy of then, if there is one.
    """
    if tensor._version != counter:
        return True
    if type(value) is not Tensor or not tensor.is_cpu or tensor.layout != torch.strided:
        return False  # a copy under FakeTensorMode is no Tensor
    return tensor.is_contiguous() and bytes_on_host(tensor) != bytes_on_host(value)


def is_plain_tensor(value: Any) -> bool:
    """Whether it is a tensor that no gradient is asked of, and that counts what is written to it."""
    return type(value) is Tensor and not value.requires_grad and not value.is_inference()


Kind = tuple[torch.Size, torch.dtype]


def kind_of(tensor: Tensor) -> Kind:
    """What a tensor that a call makes anew has in common with those that its other calls have made there."""
    return tensor.shape, tensor.dtype


class Look(enum.Enum):
    """Which tensors are copied: small ones in a block's first call, in the others those of them on the CPU."""

    FIRST = enum.auto()
    LATER = enum.auto()


class HeldTensor(NamedTuple):
    """A tensor in a container, its counter, and a copy, or None of a large one."""

    held: Tensor
    counter: int
    value: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, look: Look, written: Container[Kind]) -> HeldTensor:
        """With a copy, where it may be needed: on a GPU each is a launch, and the counter tells.

        Args:
            tensor: which.
            look: at what.
            written: the kinds of tensors that are copied in any case.
        """
        is_small = tensor.numel() <= COPIED_ANYWAY and (tensor.is_cpu or look is Look.FIRST)
        is_kept = is_small or kind_of(tensor) in written
        return cls(tensor, tensor._version, tensor.clone() if is_kept else None)

    @property
    def is_changed(self) -> bool:
        """Whether it has been written to since."""
        return is_written(self.held, self.counter, self.value)

    def put_back(self) -> None:
        """Have it hold what it held."""
        if self.value is not None:
            _given(self.held, self.value)


class HeldArray(NamedTuple):
    """An array of NumPy's, and a copy."""

    held: Any
    value: Any

    @property
    def is_changed(self) -> bool:
        """Whether it has been written to since."""
        return bool(self.held.tobytes() != self.value.tobytes())

    def put_back(self) -> None:
        """Have it hold what it held."""
        self.held[...] = self.value


class HeldGenerator(NamedTuple):
    """A random generator, its state, and what tells that from others."""

    held: Any
    state: Any
    told: bytes

    @classmethod
    def of(cls, generator: Any) -> HeldGenerator:
        """As it stands."""
        state = _ways(type(generator))[0](generator)
        return cls(generator, state, _told(state))

    @property
    def is_changed(self) -> bool:
        """Whether it has drawn since, or has been seeded."""
        return _told(_ways(type(self.held))[0](self.held)) != self.told

    def put_back(self) -> None:
        """Have it stand where it stood."""
        _ways(type(self.held))[1](self.held, self.state)


Held = HeldTensor | HeldArray | HeldGenerator


def held(value: Any, look: Look, written: Container[Kind]) -> Held | None:
    """What keeps the value of ``value``; None of what is none of these, or cannot be kept."""
    if is_plain_tensor(value):
        return HeldTensor.of(value, look, written)
    return held_beside_tensors(value, most=COPIED_ANYWAY)


def held_beside_tensors(value: Any, most: float = math.inf) -> HeldArray | HeldGenerator | None:
    """The same of an array of no more than so many elements, and of a generator."""
    if is_array(type(value)):
        is_kept = value.flags.writeable and not value.dtype.hasobject and value.size <= most
        return HeldArray(value, value.copy()) if is_kept else None
    return HeldGenerator.of(value) if is_generator(type(value)) and not _is_recorded(value) else None


def may_be_held(kind: type) -> bool:
    """Whether `held` may keep the value of an object of this class."""
    return kind is Tensor or is_array(kind) or is_generator(kind)


_IS_GENERATOR: dict[type, bool] = {}


def is_generator(kind: type) -> bool:
    """Whether objects of this class are random generators."""
    if kind not in _IS_GENERATOR:
        _IS_GENERATOR[kind] = _ways(kind) is not _NONE
    return _IS_GENERATOR[kind]


def _is_recorded(generator: Any) -> bool:
    """Whether CUDA records a graph, while which its generators cannot be looked at."""
    on_gpu = isinstance(generator, torch.Generator) and generator.device.type == "cuda"
    return on_gpu and torch.cuda.is_current_stream_capturing()


def _told(state: Any) -> bytes:
    return bytes_on_host(state) if isinstance(state, Tensor) else pickle.dumps(state)


_Ways = tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]


def _nothing(*_: Any) -> None:
    """Of no generator."""


_NONE: _Ways = (_nothing, _nothing)


def _ways(kind: type) -> _Ways:
    """How a generator of this class is asked for its state, and given one."""
    if issubclass(kind, torch.Generator):
        return kind.get_state, kind.set_state
    if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
        return kind.getstate, kind.setstate
    if kind.__module__.startswith("numpy.random"):
        if kind.__name__ == "Generator":
            return lambda own: own.bit_generator.state, lambda own, state: setattr(own.bit_generator, "state", state)
        if kind.__name__ == "RandomState":
            return lambda own: own.get_state(legacy=False), lambda own, state: own.set_state(state)
    return _NONE


class InBuffer(NamedTuple):
    """A tensor in a container that lies in a buffer's memory, and where that buffer stands."""

    held: Tensor
    buffers: dict[str, Tensor | None]
    name: str
    offset: int

    @property
    def stand_in(self) -> Tensor | None:
        """The same place in the tensor that stands for the buffer now; None where the buffer itself does."""
        buffer, held = self.buffers.get(self.name), self.held
        if buffer is None or _memory_of(buffer) == _memory_of(held):
            return None
        offset = buffer.storage_offset() + held.storage_offset() - self.offset
        return buffer.as_strided(held.shape, held.stride(), offset)


def in_buffers(written: Sequence[Held], modules: Iterable[nn.Module]) -> dict[int, InBuffer | None]:
    """Those, by their number, that lie in the memory of a buffer, whose values are kept as those of the buffer.

    Of an array, whose memory a buffer has, nothing is known but that.
    """
    found: dict[int, InBuffer | None] = {}
    for module in modules:
        for name, buffer in module._buffers.items():
            if type(buffer) is not Tensor or buffer.layout != torch.strided or not buffer.is_contiguous():
                continue
            for number, value in enumerate(written):
                if isinstance(value, HeldArray) and buffer.is_cpu:
                    if 0 <= value.held.ctypes.data - buffer.data_ptr() < buffer.nbytes:
                        found[number] = None
                elif isinstance(value, HeldTensor) and _lies_in(value.held, buffer):
                    found[number] = InBuffer(value.held, module._buffers, name, int(buffer.storage_offset()))
    return found


def _lies_in(tensor: Tensor, buffer: Tensor) -> bool:
    is_whole = buffer.nbytes == buffer.untyped_storage().nbytes()
    return is_whole and tensor.dtype == buffer.dtype and _memory_of(tensor) == _memory_of(buffer)


def stand_ins(written: Iterable[tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
    """By the identity of a tensor, another one with the value that is given beside it.

    Those that share memory share it again.
    """
    together: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    for tensor, value in written:
        together.setdefault(_memory_of(tensor), {})[id(tensor)] = tensor, value
    found: dict[int, Tensor] = {}
    for sharing in together.values():
        memory = None
        for key, (tensor, value) in sharing.items():
            if len(sharing) == 1:
                found[key] = value.clone()
                continue
            memory = tensor.untyped_storage().clone() if memory is None else memory
            place = value.new_empty(0).set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
            found[key] = _given(place, value)
    return found


def _memory_of(tensor: Tensor) -> int:
    """What tells its memory from that of others; a sparse tensor shares none."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _given(place: Tensor, value: Tensor) -> Tensor:
    """The tensor with this value; an expanded one has it from what it lies in."""
    if not repeats(place):
        place.data.copy_(value)  # through .data: graphs that saved it stay valid
    return place
