r"""What batch normalisation measured in forward, kept so that a recompute need not measure it again.

Measuring mean and variance takes most of the time of a norm in training (on a GPU it is one of its three passes over
memory). A recompute normalises the same batch, so it takes both from forward (8 bytes a channel) and computes the rest
alone,

    y = x alpha + (bias - mean alpha)        alpha = weight / sqrt(variance + eps)

by a kernel for statistics that are given, if it rounds this as the norm's own does. Whether it does is tried once for a
device, the types and the kernel that the norm took, on a GPU also for batches of this size; where it does not, and for
other types, layouts and devices, the batch is measured again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.buffers.buffers_on_demand import as_they_are
from momentumnet.recompute.buffers.norm_calls import forward_of_class, through
from momentumnet.recompute.saved.collected_tensors import never_opened, watched
from momentumnet.recompute.surroundings.uncompiled import is_compiled

_PLAIN = (Tensor, nn.Parameter)
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of the norm's kernels in training, how many tensors each saves of what it has computed: mean, deviation, and cuDNN's
# work space, which its backward asks for again.
_RESULTS = {"NativeBatchNormBackward0": 2, "CudnnBatchNormBackward0": 3}
_LARGEST_WORK_SPACE = 16  # bytes a channel; a larger one is not kept


@dataclass(frozen=True)
class Measured:
    """What a norm saved for its backward.

    Attributes:
        names: of what it saved before it ran (x: "").
        results: mean and 1 / sqrt(variance + eps) of each channel, and work space.
    """

    names: tuple[str, ...]
    results: tuple[Tensor, ...]


class BatchStatistics:
    """What the norms of one block call measured, by norm and call.

    Args:
        owners: the modules of the block.
    """

    def __init__(self, owners: list[nn.Module]) -> None:
        norms = [owner for owner in owners if _measures(owner)]
        self._norms = _outside_compiled(norms, owners) if norms else norms
        self._measured: dict[int, list[Measured | None]] = {}

    def recorded(self) -> AbstractContextManager[None]:
        """Context of the forward."""
        return through(self._norms, self._measure) if self._norms else nullcontext()

    def given_again(self) -> list[nn.Module]:
        """The norms that a recompute gives their statistics: a call of theirs leaves their buffers alone."""
        return [norm for norm in self._norms if None not in self._measured.get(id(norm), [None])]

    def replayed(self) -> AbstractContextManager[None]:
        """Context of a recompute."""
        given = self.given_again()
        if not given:
            return nullcontext()
        calls = {id(norm): iter(self._measured[id(norm)]) for norm in given}
        return through(
            given,
            lambda norm, x: _Normalised.apply(x, norm.weight, norm.bias, norm, next(calls[id(norm)], None)),
        )

    def forget(self, norms: Iterable[nn.Module]) -> None:
        """Let a recompute run these as they are: it moves their running statistics, which somebody reads."""
        for norm in norms:
            self._measured.pop(id(norm), None)

    def _measure(self, norm: nn.Module, x: Tensor) -> Tensor:
        output, saved = watched(lambda: forward_of_class(norm, x))
        self._measured.setdefault(id(norm), []).append(_measured(norm, x, output, saved))
        return output


def _measures(module: nn.Module) -> bool:
    """Whether it is one of torch's norms as it is there, and takes the statistics of the batch."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    plain = type(module).forward is _BatchNorm.forward and "forward" not in module.__dict__
    # A parametrized weight is another tensor each time that it is asked for.
    plain = plain and {"weight", "bias"} <= module._parameters.keys()
    return plain and (module.training or module.running_mean is None)


def _outside_compiled(norms: list[nn.Module], owners: list[nn.Module]) -> list[nn.Module]:
    """Those of the norms that no compiled module runs.

    Dynamo looks at what stands in a norm: with another forward there, a recompute would take graphs of its own. That is
    twice the compiling, and where as many graphs as it allows are there after forward, the recompute is not compiled.
    """
    compiled = [owner for owner in owners if is_compiled(owner)]
    if not compiled:
        return norms
    within = {id(module) for owner in compiled for module in owner.modules()}
    return [norm for norm in norms if id(norm) not in within]


def _measured(norm: nn.Module, x: Tensor, output: Tensor, saved: list[Tensor]) -> Measured | None:
    """What a norm measured, from what autograd saved of it; None if it cannot be given again."""
    tensors = {**norm._parameters, **dict(as_they_are(norm))}
    if not _can_be_given(x, norm._parameters):
        return None
    before, results = _cut(output, saved)
    places = {tensor.data_ptr(): name for name, tensor in tensors.items() if tensor is not None}
    places[x.data_ptr()] = ""
    names = tuple(places.get(tensor.data_ptr()) for tensor in before)
    # A norm that the block itself has put in eval mode measures nothing.
    if None in names or not results or results[0].numel() != x.shape[1]:
        return None
    if sum(work_space.nbytes for work_space in results[2:]) > _LARGEST_WORK_SPACE * x.shape[1]:
        return None
    return Measured(names, results) if _is_exact(norm, x, output, results) else None  # type: ignore[arg-type]


def _cut(output: Tensor, saved: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """What a norm saved before and after it ran; nothing after where it took no known kernel.

    Nor where hooks inside the block have taken it (torch.utils.checkpoint, save_on_cpu).
    """
    count = _RESULTS.get(_kernel(output), 0)
    if not count or len(saved) < count:
        return [], ()
    return saved[:-count], tuple(saved[-count:])


def _kernel(output: Tensor) -> str:
    return "" if output.grad_fn is None else output.grad_fn.name()


def _can_be_given(x: Tensor, parameters: Mapping[str, Tensor | None]) -> bool:
    for tensor in (x, *parameters.values()):
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or tensor.dtype not in _TYPES or tensor.device != x.device:
            return False
    return x.numel() > 0 and (
        x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    )


def _can_be_tried(device: torch.device) -> bool:
    """Whether values can be looked at there: not while CUDA records a graph.

    What the passes in front of it have found holds for the graph as well.
    """
    return device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_current_stream_capturing())


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
        tensors = {"": x, **norm._parameters, **dict(as_they_are(norm))}
        ctx.save_for_backward(*(tensors[name] for name in measured.names), *measured.results)
        return normalised(x, weight, bias, *measured.results[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        never_opened(grad)


def normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, deviation: Tensor) -> Tensor:
    """The output of a norm in training, from what it measured."""
    if x.is_cuda:
        return torch.batch_norm_elemt(x, weight, bias, mean, deviation, 0.0)
    # The kernel multiplies in float32: it is given alpha as that, so that it is not rounded to half precision before.
    mean, alpha = mean.float(), deviation.float()
    alpha = alpha if weight is None else weight.float() * alpha
    bias = None if bias is None else bias.float()
    # Given a variance of 1 and eps 0, the kernel multiplies by alpha what it would multiply by weight / 1.
    return torch.native_batch_norm(x, alpha, bias, mean, torch.ones_like(mean), False, 0.0, 0.0)[0]


_FOUND: dict[tuple[torch.device, torch.dtype, torch.dtype], frozenset[str]] = {}


# On a GPU, whether a kernel agrees for batches about as large: cuDNN has several behind one name.
_FOUND_AT_SIZES: dict[tuple[object, ...], bool] = {}
_COMPARED = 1 << 16  # values of the batch at hand, or one example


def _is_exact(norm: nn.Module, x: Tensor, output: Tensor, results: tuple[Tensor, ...]) -> bool:
    """Whether `normalised` agrees with what the norm made of ``x``; False as long as that could not be tried."""
    parameter = next((value for value in norm._parameters.values() if value is not None), x)
    kind, kernel = (x.device, x.dtype, parameter.dtype), _kernel(output)
    if kernel not in _exact_kernels(*kind):
        return False
    if not _goes_by_size(x.device):
        return True
    per_channel = x.numel() // x.shape[1]
    key = (
        *kind,
        kernel,
        x.dim(),
        x.shape[1],
        per_channel.bit_length(),
        x.is_contiguous(),
        norm._parameters["weight"] is None,
    )
    if key not in _FOUND_AT_SIZES:
        if not _can_be_tried(x.device):
            return False
        _FOUND_AT_SIZES[key] = _agrees_on(norm, x, output, results)
    return _FOUND_AT_SIZES[key]


def _goes_by_size(device: torch.device) -> bool:
    return device.type == "cuda"


def _agrees_on(norm: nn.Module, x: Tensor, output: Tensor, results: tuple[Tensor, ...]) -> bool:
    """The same of the first examples, to the bit, NaN included."""
    count = max(1, _COMPARED * len(x) // x.numel())
    bits = torch.int32 if x.dtype == torch.float32 else torch.int16
    with torch.no_grad(), _reads_allowed(x.device):
        found = normalised(x[:count], norm._parameters["weight"], norm._parameters["bias"], *results[:2])
        return torch.equal(found.view(bits), output[:count].view(bits))


def _exact_kernels(device: torch.device, dtype: torch.dtype, parameter_dtype: torch.dtype) -> frozenset[str]:
    """Those of the norm's kernels that `normalised` agrees with to the bit, on this device and for these types.

    None as long as that could not be tried.
    """
    key = device, dtype, parameter_dtype
    if key not in _FOUND:
        if not _can_be_tried(device):
            return frozenset()
        _FOUND[key] = _tried(*key)
    return _FOUND[key]


def _tried(device: torch.device, dtype: torch.dtype, parameter_dtype: torch.dtype) -> frozenset[str]:
    agrees: dict[str, bool] = {}
    with torch.no_grad(), _reads_allowed(device):
        for x, weight, bias in _trials(device, dtype, parameter_dtype):
            saved: list[Tensor] = []
            with torch.enable_grad(), saved_tensors_hooks(saved.append, never_opened):
                expected = nn.functional.batch_norm(x, None, None, weight, bias, training=True)
            _, results = _cut(expected, saved)
            found = bool(results) and torch.equal(normalised(x, weight, bias, *results[:2]), expected)
            agrees[_kernel(expected)] = agrees.get(_kernel(expected), True) and found
    return frozenset(kernel for kernel, equal in agrees.items() if equal)


def _trials(
    device: torch.device, dtype: torch.dtype, parameter_dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
    """Small batches, weights and biases: in each layout, and without weights."""
    for shape in ((5, 37), (3, 9, 13), (4, 37, 9, 11)):
        values = (torch.arange(torch.Size(shape).numel(), device=device) * 0.618034 % 1 * 5 - 1).reshape(shape)
        weight, bias = (values.flatten()[: shape[1]] + 1).to(parameter_dtype), values.flatten()[-shape[1] :]
        x = values.to(dtype)
        layouts = [x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x]
        for laid in layouts:
            yield laid.requires_grad_(), weight, bias.to(parameter_dtype)
            yield laid, None, None


@contextmanager
def _reads_allowed(device: torch.device) -> Iterator[None]:
    """What is tried once may wait for the device, where the user forbids that."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
