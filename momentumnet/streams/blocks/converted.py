"""Blocks that know their role: a dynamic subclass that sends each call through a stream or a checkpoint.

The block stays the same object: its class gets a subclass of the same name, so its parameters, state-dict keys, hooks,
attributes and ``isinstance`` stay as they are, and code that reads a container's blocks still finds them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch._compile import _disable_dynamo  # torch.compiler.disable would import the compiler with this module

from momentumnet.core.outside.offload import Offload
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.errors import ConversionError
from momentumnet.recompute.saved.offloaded_tensors import fetch_ahead, settle
from momentumnet.streams.blocks.averaging import check_averaged, is_averaging
from momentumnet.streams.blocks.nested import tensors_in

Model = TypeVar("Model", bound=nn.Module)

VELOCITY_NAME = "initial_velocity"
# An attribute of models that were converted and keep all activations, of which no block has a role.
_UNCHANGED = "_momentumnet_unchanged"


class Runner(Protocol):
    """What a converted block's call goes through: a `MomentumStream` or a `Checkpoint`."""

    def call(
        self, name: str, module: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call ``function(*args, **kwargs)`` as the block ``name``."""


@dataclass
class Role:
    """A block's place: its name and what runs it.

    Attributes:
        name: the block's name.
        runner: what its calls go through.
        offload: moves what it saves to host memory, where its runner leaves that to autograd.
        settles: whether the device lets go of what the unit in front has moved when its call has ended.
    """

    name: str
    runner: Runner
    offload: Offload | None = None
    settles: bool = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.join()

    def join(self) -> None:
        """Tell the stream that the block is there: one that is cut away from the others is noticed by them."""
        if isinstance(self.runner, MomentumStream):
            self.runner.members.join(self.name, self)


class ConvertedBlock:
    """Mixed in before a block's own class: takes the call before the module's hooks, which may pass on new tensors."""

    _momentumnet_role: Role

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _take(self, super().__call__, args, kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        get_state = getattr(self, "__getstate__", None)
        by_forward = isinstance(self, BlockByForward)
        state = get_state() if get_state else self.__dict__
        return _rebuild, (original_class(type(self)), by_forward), state

    def __prepare_scriptable__(self) -> Any:
        raise ConversionError(
            f"torch.jit.script would compile block {self._momentumnet_role.name!r} without its stream, as a block that "
            "was never converted; use torch.jit.trace or torch.export, or script momentumnet.revert(model)"
        )

    def _get_name(self) -> str:
        return f"Momentum({super()._get_name()})"  # type: ignore[misc]


class BlockByForward(ConvertedBlock):
    """Of a block whose ``forward`` the parent calls, past ``__call__`` and the hooks: takes that call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super(ConvertedBlock, self).__call__(*args, **kwargs)  # type: ignore[misc]


def _take(block: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Not is_exporting(), which Dynamo of PyTorch 2.11 takes for true in any compilation.
    if torch.compiler.is_dynamo_compiling() and getattr(torch.compiler, "_is_exporting_flag", False):
        raise ConversionError("torch.export(..., strict=True) cannot see through converted blocks; pass strict=False")
    return _run(block._momentumnet_role, block, function, args, kwargs)


class _ByForward(threading.local):
    """Blocks whose forward runs in this thread, by the identity of their objects."""

    def __init__(self) -> None:
        self.under_way: set[int] = set()


_BY_FORWARD = _ByForward()


def _forward_once(forward: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A block's own forward; calls of ``block.forward`` inside are no further call of the block."""
    before = _BY_FORWARD.under_way
    _BY_FORWARD.under_way = before | {id(block)}
    try:
        return forward(block, *args, **kwargs)
    finally:
        _BY_FORWARD.under_way = before


# Dynamo would trace into the tape; it compiles the block inside instead, or runs it as it is.
@_disable_dynamo
def _run(role: Role, block: Any, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if id(block) in _BY_FORWARD.under_way:  # it calls its own forward again
        return function(*args, **kwargs)
    if is_averaging():
        check_averaged(role.name, block)
    if role.offload is not None:
        function = partial(role.offload.call, role.name, block, function)
    output = role.runner.call(role.name, block, function, args, kwargs)
    if role.settles:
        fetch_ahead(settle(role.offload), tensors_in(output))
    return output


_CLASSES: dict[tuple[type[nn.Module], bool], type[nn.Module]] = {}


def converted_class(original: type[nn.Module], *, by_forward: bool = False) -> type[nn.Module]:
    """The subclass of ``original`` whose calls go through a role; one for each original.

    Args:
        original: a block's own class.
        by_forward: whether these are calls of its ``forward``.
    """
    if (original, by_forward) not in _CLASSES:
        _CLASSES[original, by_forward] = _new_class(original, by_forward=by_forward)
    return _CLASSES[original, by_forward]


def _new_class(original: type[nn.Module], *, by_forward: bool) -> type[nn.Module]:
    attributes: dict[str, Any] = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    if not by_forward:
        return type(original.__name__, (ConvertedBlock, original), attributes)

    @wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _take(self, partial(_forward_once, original.forward, self), args, kwargs)

    return type(original.__name__, (BlockByForward, original), {**attributes, "forward": forward})


def original_class(converted: type) -> type[nn.Module]:
    """The class that a block had before."""
    if converted.__bases__[0] not in (ConvertedBlock, BlockByForward):
        raise ConversionError(
            f"{converted.__name__} was wrapped again after its conversion (by fully_shard?); undo that first"
        )
    original: type[nn.Module] = converted.__bases__[1]
    return original


def _rebuild(original: type[nn.Module], by_forward: bool = False) -> nn.Module:
    cls = converted_class(original, by_forward=by_forward)
    return cls.__new__(cls)


def assign(block: nn.Module, role: Role, *, by_forward: bool = False) -> None:
    """Give the block its role.

    Args:
        block: of the model.
        role: what its calls go through.
        by_forward: whether its ``forward`` is called, and not the block itself.

    Raises:
        ConversionError: it has one already, or it is a scripted module, whose class cannot change.
    """
    if isinstance(block, ConvertedBlock):
        raise ConversionError(f"block {role.name!r} is converted already; revert the model first")
    if isinstance(block, torch.jit.ScriptModule):
        raise ConversionError(f"block {role.name!r} is a torch.jit.ScriptModule; convert the model before scripting it")
    block._momentumnet_role = role  # type: ignore[assignment]
    role.join()
    block.__class__ = converted_class(type(block), by_forward=by_forward)


def release(block: nn.Module) -> None:
    """Make the block what it was before `assign`."""
    block.__class__ = original_class(type(block))
    del block.__dict__["_momentumnet_role"]
    block._modules.pop(VELOCITY_NAME, None)


class _Aside(threading.local):
    """How many networks are called as what they were in this thread."""

    def __init__(self) -> None:
        self.count = 0


_ASIDE = _Aside()


@contextmanager
def roles_laid_aside(model: nn.Module) -> Iterator[None]:
    """Inside, converted blocks are called as what they were: the network is traced as its residual original."""
    classes = [(block, type(block), original_class(type(block))) for block, _ in converted_blocks(model)]
    for block, _, original in classes:
        block.__class__ = original
    _ASIDE.count += 1
    try:
        yield
    finally:
        _ASIDE.count -= 1
        for block, converted, _ in classes:
            block.__class__ = converted


def is_laid_aside() -> bool:
    """Whether a network is being called as what it was, in this thread: such a call is no step of a training."""
    return _ASIDE.count > 0


def is_converted(model: nn.Module) -> bool:
    """Whether the model holds a converted block, or has been converted and needs none."""
    has_block = next(converted_blocks(model), None) is not None
    return has_block or any(_UNCHANGED in module.__dict__ for module in model.modules())


def note_converted(model: nn.Module) -> None:
    """Say that the model has been converted, where no block of it tells: a plan for so many bytes may keep all."""
    if not is_converted(model):
        model.__dict__[_UNCHANGED] = True


def release_all(model: nn.Module) -> None:
    """Make the model what it was before it was converted."""
    for block in [block for block, _ in converted_blocks(model)]:
        release(block)
    for module in model.modules():
        module.__dict__.pop(_UNCHANGED, None)


def converted_blocks(model: nn.Module) -> Iterator[tuple[nn.Module, Role]]:
    """Every converted block in the model with its role."""
    for module in model.modules():
        if isinstance(module, ConvertedBlock):
            yield module, module._momentumnet_role


def named_streams(model: nn.Module) -> dict[str, MomentumStream]:
    """The momentum streams in the model, each once, by the dotted name of the first module of theirs.

    That is a stream's first block, or a `MomentumNet`. Names are those that ``model.named_modules()`` has now, as those
    of a state dict are: they are different for each stream, wherever its model has been put since.
    """
    found: dict[int, tuple[str, MomentumStream]] = {}
    for name, module in model.named_modules():
        is_block = isinstance(module, ConvertedBlock)
        runner = module._momentumnet_role.runner if is_block else module.__dict__.get("stream")
        if isinstance(runner, MomentumStream):
            found.setdefault(id(runner), (name, runner))
    return dict(found.values())


def streams_of(model: nn.Module) -> list[MomentumStream]:
    """The momentum streams in the model, each once, in order."""
    return list(named_streams(model).values())
