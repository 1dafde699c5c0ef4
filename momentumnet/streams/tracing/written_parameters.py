"""Parameters that a forward writes have their values and memory again behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from momentumnet.recompute.values.objects import Values
from momentumnet.streams.blocks.nested import tensors_in
from momentumnet.streams.tracing.calls import storage_key

# Up to so many bytes all parameters are copied in front: that takes less time than a look at every function.
COPIED_IN_FRONT = 1 << 24


@contextmanager
def parameters_put_back(model: nn.Module) -> Iterator[None]:
    """Gives parameters that are written inside, in place or by ``.data =``, what they were at the end.

    Those of a larger model are each copied right before the first function that writes it: a copy of all would be as
    large as the model. Buffers have their memory again, too; their values are another's affair.
    """
    parameters = list(model.parameters())
    # What another tensor's memory is assigned to is found and put back by an alias of what it was.
    with _disable_current_modes():  # under which the alias of a tensor on the meta device would be a fake one
        aliases = [(tensor, tensor.detach()) for tensor in (*parameters, *model.buffers())]
    counters = [(parameter, parameter._version) for parameter in parameters if not parameter.is_inference()]
    own = [alias for _, alias in aliases[: len(parameters)]]
    watch = None if _is_small(own) else CopiedWhenWritten(own)
    copies = Copies(own) if watch is None else watch
    try:
        with watch or nullcontext():
            yield
    finally:
        with _disable_current_modes():
            for tensor, alias in aliases:
                if _place(tensor) != _place(alias):
                    tensor.data = alias
        copies.put_back()
        for parameter, counter in counters:
            if parameter._version != counter:
                torch._C._autograd._unsafe_set_version_counter((parameter,), (counter,))


def _is_small(tensors: Sequence[Tensor]) -> bool:
    plain = all(type(tensor) is Tensor and tensor.layout == torch.strided for tensor in tensors)
    return plain and sum(tensor.nbytes for tensor in tensors) <= COPIED_IN_FRONT


class Copies:
    """Copies of tensors, taken at once."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._values = Values(tensors)

    def put_back(self) -> None:
        """The tensors have the values of then."""
        self._values.put_back()


class CopiedWhenWritten(TorchFunctionMode):
    """Copies of those tensors that functions inside write, taken right before the first one."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._unwritten: dict[int | None, list[Tensor]] = {}
        for tensor in tensors:
            self._unwritten.setdefault(storage_key(tensor), []).append(tensor)
        self._unwritten.pop(None, None)
        self._written: list[Values] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not kwargs and not _writes(func):  # nearly all, and a network of small blocks waits for each
            return func(*args)
        kwargs = kwargs or {}
        makes_rows_shorter = kwargs.get("max_norm") is not None  # those of an embedding's weight
        if makes_rows_shorter or _writes(func) or "out" in kwargs:
            written = list(tensors_in((args if makes_rows_shorter else args[:1], kwargs)))
            # Dynamo has to leave its graph for a look: for parameters themselves alone, not for each tensor.
            if not torch.compiler.is_compiling() or any(isinstance(tensor, nn.Parameter) for tensor in written):
                self._keep(written)
        return func(*args, **kwargs)

    @_disable_dynamo
    def _keep(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if not torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # it has no storage to look at
                sharing = self._unwritten.pop(storage_key(tensor), None)
                self._written += [] if sharing is None else [Values(sharing)]

    def put_back(self) -> None:
        """The tensors have the values of then."""
        for values in self._written:
            values.put_back()


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Where it lies in memory, and how; None of what has no memory of its own."""
    key = storage_key(tensor)
    return None if key is None else (key, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _writes(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument, by its name: ``div_``, ``__imul__``, ``__setitem__``."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in _WRITING_OPERATORS


_WRITING_OPERATORS = frozenset(
    f"__{name}__"
    for name in (
        "setitem", "iadd", "isub", "imul", "idiv", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor",
        "ilshift", "irshift",
    )
)  # fmt: skip
