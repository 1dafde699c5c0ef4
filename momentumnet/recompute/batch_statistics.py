r"""What batch normalisation measured in forward, kept so that a recompute need not measure it again.

On the CPU, measuring mean and variance takes most of the time of a norm in training. A recompute normalises the same
batch, so it takes both from forward (8 bytes a channel) and computes the rest alone,

    y = x alpha + (bias - mean alpha)        alpha = weight / sqrt(variance + eps)

by the kernel for statistics that are given, which rounds this in the same way. Whether it does so on this machine is
tried once; where it does not, and for other types, layouts and devices, the batch is measured again.
"""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.saved_tensors import never_opened, watched

_PLAIN = (Tensor, nn.Parameter)


@dataclass(frozen=True)
class Measured:
    """Mean and 1 / sqrt(variance + eps) of each channel, and names of what autograd saved before (x: "")."""

    mean: Tensor
    deviation: Tensor
    saved: tuple[str, ...]


class BatchStatistics:
    """What the norms of one block call measured, by norm and call.

    Args:
        owners: the modules of the block.
    """

    def __init__(self, owners: list[nn.Module]) -> None:
        self._norms = [owner for owner in owners if _measures(owner)]
        self._measured: dict[int, list[Measured | None]] = {}

    def recorded(self) -> AbstractContextManager[None]:
        """Context of the forward."""
        return _through(self._norms, self._measure) if self._norms else nullcontext()

    def replayed(self) -> AbstractContextManager[None]:
        """Context of a recompute."""
        calls = {key: iter(measured) for key, measured in self._measured.items() if None not in measured}
        if not calls:
            return nullcontext()
        return _through(
            [norm for norm in self._norms if id(norm) in calls],
            lambda norm, x: _Normalised.apply(x, norm.weight, norm.bias, norm, next(calls[id(norm)], None)),
        )

    def _measure(self, norm: nn.Module, x: Tensor) -> Tensor:
        output, saved = watched(lambda: _forward_of_class(norm, x))
        self._measured.setdefault(id(norm), []).append(_measured(norm, x, output, saved))
        return output


def _measures(module: nn.Module) -> bool:
    """Whether it is one of torch's norms as it is there, and takes the statistics of the batch."""
    plain = type(module).forward is _BatchNorm.forward and "forward" not in module.__dict__
    # A parametrized weight is another tensor each time that it is asked for.
    plain = plain and {"weight", "bias"} <= module._parameters.keys()
    return plain and (module.training or module.running_mean is None)


def _measured(norm: nn.Module, x: Tensor, output: Tensor, saved: list[Tensor]) -> Measured | None:
    """What a norm measured, from what autograd saved of it; None if it cannot be given again."""
    node, tensors = output.grad_fn, {**norm._parameters, **norm._buffers}
    if node is None or node.name() != "NativeBatchNormBackward0" or not _can_be_given(x, norm._parameters):
        return None
    if len(saved) < 2:  # hooks inside the block have taken them (torch.utils.checkpoint, save_on_cpu)
        return None
    places = {tensor.data_ptr(): name for name, tensor in tensors.items() if tensor is not None}
    places[x.data_ptr()] = ""
    # Results are saved after the operation, all else before.
    *before, mean, deviation = saved
    names = tuple(places.get(tensor.data_ptr()) for tensor in before)
    # A norm that the block itself has put in eval mode measures nothing.
    if None in names or mean.numel() != x.shape[1] or not _is_exact_here():
        return None
    return Measured(mean, deviation, names)  # type: ignore[arg-type]


def _can_be_given(x: Tensor, parameters: Mapping[str, Tensor | None]) -> bool:
    for tensor in (x, *parameters.values()):
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or tensor.dtype != torch.float32 or not tensor.is_cpu:
            return False
    return x.numel() > 0 and (
        x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    )


class _Normalised(torch.autograd.Function):
    """A norm in training whose statistics are known; saves what the norm itself would."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: nn.Module, measured: Measured | None
    ) -> Tensor:
        if measured is None:
            raise ReconstructionError(
                f"a {type(norm).__name__} is called more often in backward than in forward: its block took another path"
            )
        tensors = {"": x, **norm._parameters, **norm._buffers}
        ctx.save_for_backward(*(tensors[name] for name in measured.saved), measured.mean, measured.deviation)
        return normalised(x, weight, bias, measured.mean, measured.deviation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        never_opened(grad)


def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, deviation: Tensor) -> Tensor:
    """The output of a norm in training, from what it measured."""
    alpha = deviation if weight is None else weight * deviation
    # Given a variance of 1 and eps 0, the kernel multiplies by alpha what it would multiply by weight / 1.
    return torch.native_batch_norm(x, alpha, bias, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]


@functools.cache
def _is_exact_here() -> bool:
    """Whether a norm computes the same bits from given statistics, in both layouts."""
    with torch.no_grad():
        for shape in ((5, 37), (3, 9, 13), (4, 37, 9, 11)):
            x = (torch.arange(torch.Size(shape).numel()) * 0.618034 % 1 * 5 - 1).reshape(shape)
            weight, bias = x.flatten()[: shape[1]] + 1, x.flatten()[-shape[1] :]
            layouts = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
            for laid in layouts:
                for scale, shift in ((weight, bias), (None, None)):
                    expected, *measured = torch.native_batch_norm(laid, scale, shift, None, None, True, 0.1, 1e-5)
                    if not torch.equal(normalised(laid, scale, shift, *measured), expected):
                        return False
    return True


class _Running(threading.local):
    """How norms are called in this thread, by identity, the innermost block call last."""

    def __init__(self) -> None:
        self.stack: list[tuple[set[int], Callable[[nn.Module, Tensor], Tensor]]] = []


_RUNNING = _Running()
_LOCK = threading.Lock()
# How many block calls under way, of whatever thread, have replaced the norm's forward.
_REPLACED: dict[int, int] = {}


@contextmanager
def _through(norms: list[nn.Module], run: Callable[[nn.Module, Tensor], Tensor]) -> Iterator[None]:
    """Inside, the norms are called as ``run(norm, x)`` in this thread."""
    with _LOCK:
        for norm in norms:
            _REPLACED[id(norm)] = _REPLACED.get(id(norm), 0) + 1
            norm.__dict__["forward"] = types.MethodType(forward, norm)
    _RUNNING.stack.append(({id(norm) for norm in norms}, run))
    try:
        yield
    finally:
        _RUNNING.stack.pop()
        with _LOCK:
            for norm in norms:
                _REPLACED[id(norm)] -= 1
                if not _REPLACED[id(norm)]:
                    del _REPLACED[id(norm)], norm.__dict__["forward"]


def forward(norm: nn.Module, input: Tensor) -> Tensor:
    """``norm.forward`` while block calls are under way; a copy or pickle made then goes to the class's own.

    It is pickled by its name, which the class knows.
    """
    # In a block that is compiled, Dynamo sees the norm as it is.
    if not torch.compiler.is_compiling():
        for norms, run in reversed(_RUNNING.stack):
            if id(norm) in norms:
                return run(norm, input)
    return _forward_of_class(norm, input)


def _forward_of_class(norm: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = type(norm).forward(norm, x)
    return output
