"""One call of one block, kept so that it can be made again with the same result, and leave no trace the second time.

What a call depends on beside its input: further arguments, the random generators, autocast, grad mode, and buffers
that the block itself changes. All of it is recorded here, and only what the call really used is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from momentumnet.errors import ReconstructionError
from momentumnet.recompute.arguments import Arguments, kept, version
from momentumnet.recompute.batch_statistics import BatchStatistics
from momentumnet.recompute.choices import Choices
from momentumnet.recompute.generators import AS_IT_IS, Generators


class _Buffers:
    """Which buffers a call changed, what it saw in them before, and what it only read.

    Running statistics (all of torch's norm modules) change without a trace in the in-place counter, but a training
    forward does not read them; other buffers (spectral norm's u) are compared by counter and identity, and their
    earlier value is kept where they changed. Those that the call left as they were have to stay so until backward.
    """

    def __init__(self, owners: list[nn.Module]) -> None:
        self._owners = owners
        self._before: list[tuple[nn.Module, str, Tensor, int, Tensor]] = []
        self._read: list[tuple[nn.Module, str, Tensor, int]] = []
        for owner in owners:
            if not owner._buffers or (isinstance(owner, _NormBase) and owner.training):
                continue
            for name, buffer in owner._buffers.items():
                if buffer is not None and isinstance(owner, _NormBase):
                    self._read.append((owner, name, buffer, version(buffer)))
                elif buffer is not None:
                    self._before.append((owner, name, buffer, version(buffer), buffer.detach().clone()))
        self._seen: list[tuple[nn.Module, str, Tensor]] = []
        self._running: list[tuple[list[Tensor], list[Tensor]]] = []
        self._places: list[tuple[nn.Module, str, Tensor | None]] = []

    def kept_for_another_first_run(self) -> None:
        """Keep the running statistics, too: what `put_back` needs. Those of one type together, which is one launch."""
        moving = [
            buffer
            for owner in self._owners
            if isinstance(owner, _NormBase) and owner.training
            for buffer in owner._buffers.values()
            if buffer is not None
        ]
        self._places = [(owner, name, buffer) for owner in self._owners for name, buffer in owner._buffers.items()]
        for dtype in dict.fromkeys(buffer.dtype for buffer in moving):
            own = [buffer for buffer in moving if buffer.dtype == dtype]
            self._running.append((own, list(torch._foreach_add(own, 0))))

    def put_back(self) -> None:
        """As if the call had not been: every buffer is the tensor that it was, and holds what it held before."""
        for owner, name, buffer in self._places:
            owner._buffers[name] = buffer
        for buffers, values in self._running:
            for buffer, value in zip(buffers, values, strict=True):
                buffer.data.copy_(value)
        for owner, name, value in self._seen:
            place = owner._buffers[name]
            if place is not None:
                place.data.copy_(value)

    def forget_running(self) -> None:
        self._running, self._places = [], []

    def forget_unchanged(self) -> None:
        for owner, name, buffer, counter, value in self._before:
            if version(buffer) != counter:
                self._seen.append((owner, name, value))
            else:
                self._read.append((owner, name, buffer, counter))
        self._before = []

    def check_unchanged(self, block: str) -> None:
        for _, name, buffer, counter in self._read:
            if version(buffer) != counter:
                raise ReconstructionError(
                    f"block {block!r}: buffer {name!r} was changed between forward and backward, so the gradient of "
                    "that forward cannot be computed any more; change it after backward (under DistributedDataParallel "
                    "a further forward does it: pass broadcast_buffers=False)"
                )

    def replayed(self) -> AbstractContextManager[None]:
        """Context that runs with the buffers as the call saw them; whatever the run does to them is undone."""
        return self._replayed() if any(owner._buffers for owner in self._owners) else AS_IT_IS

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        # Another tensor stands there now: it was assigned anew, or torch.func.functional_call has taken it out.
        swapped = [
            (owner, name, buffer) for owner, name, buffer, _ in self._read if owner._buffers.get(name) is not buffer
        ]
        seen = {(id(owner), name): (owner, value) for owner, name, value in (*self._seen, *swapped)}
        # An integer buffer outside the norm modules changes only if its counter said so in forward.
        current = [
            (buffer, buffer.detach().clone())
            for owner in self._owners
            for name, buffer in owner._buffers.items()
            if buffer is not None
            and (buffer.is_floating_point() or isinstance(owner, _NormBase) or (id(owner), name) in seen)
        ]
        places = [(owner, name, owner._buffers.get(name)) for (_, name), (owner, _) in seen.items()]
        try:
            for (_, name), (owner, value) in seen.items():
                # A tensor of its own: the recompute may save it for backward, and must not see it put back.
                owner._buffers[name] = value.clone()
            yield
        finally:
            for owner, name, place in places:
                owner._buffers[name] = place
            for buffer, value in current:
                # Through .data: the in-place counter does not move, so graphs that saved this buffer stay valid.
                buffer.data.copy_(value)


class _Autocast:
    """Autocast as it stood, on the CPU and on the stream's device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cache, self._kinds = self._now()

    def _now(self) -> tuple[bool, list[tuple[str, bool, torch.dtype]]]:
        kinds = ["cpu"] if self._device.type in ("cpu", "meta") else ["cpu", self._device.type]
        states = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
        return torch.is_autocast_cache_enabled(), states

    def replayed(self) -> AbstractContextManager[object]:
        """Context of a recompute."""
        return AS_IT_IS if self._now() == (self._cache, self._kinds) else self._replayed()

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        if len(self._kinds) == 1:
            with self._one(*self._kinds[0]):
                yield
        else:
            with self._one(*self._kinds[0]), self._one(*self._kinds[1]):
                yield

    def _one(self, kind: str, enabled: bool, dtype: torch.dtype) -> torch.autocast:
        return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self._cache)


class BlockCall:
    """One call ``function(*args, **kwargs)`` of a block: `first` makes it, `again` makes it once more.

    Args:
        name: the block's dotted name, for errors.
        module: whose buffers and parameters the call uses.
        function: what to call; ``module`` itself or its unconverted ``__call__``.
        stream: the tensor among the arguments that will be handed in anew; None to keep them all.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        function: Callable[..., Any],
        stream: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.name = name
        self.dtype = torch.float32 if stream is None else stream.dtype
        self._requires_grad = stream is not None and stream.requires_grad
        self._grad_enabled = torch.is_grad_enabled()
        self._module, self._function = module, function
        self._arguments = Arguments(stream, args, kwargs)
        device = self._arguments.device if stream is None else stream.device
        self._autocast = _Autocast(device)
        self._generators = Generators(device)
        owners = list(module.modules())
        self._look_at(owners)
        self._training = module.training
        self._parameters: list[tuple[weakref.ref[Tensor], str, int, bool]] = []
        # torch.func.functional_call puts plain tensors in the parameters' places, and takes them out after forward.
        self._swapped: list[tuple[nn.Module, str, Any]] = []
        aliases: dict[int, Tensor] = {}
        for owner in owners:
            values: Iterable[tuple[str, Tensor | None]] = owner._parameters.items()
            for name, parameter in values:
                if parameter is None:
                    continue
                self._parameters.append((weakref.ref(parameter), name, version(parameter), parameter.requires_grad))
                if not isinstance(parameter, nn.Parameter):
                    self._swapped.append((owner, name, kept(parameter, aliases)))

    def _look_at(self, owners: list[nn.Module]) -> None:
        """Begin to record what a first run does."""
        self._buffers = _Buffers(owners)
        self._statistics = BatchStatistics(owners)
        self._choices = Choices()

    def first(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, may_be_taken_back: bool = False) -> Any:
        """Make the call, and forget what it turned out not to use.

        With ``may_be_taken_back``, `take_back` and `anew` are possible until `stands` says that they are not needed.
        """
        if may_be_taken_back:
            self._buffers.kept_for_another_first_run()
        with self._choices.recorded(), self._statistics.recorded():
            output = self._function(*args, **kwargs)
        self._generators.forget_unused()
        self._buffers.forget_unchanged()
        return output

    @property
    def holds_streams(self) -> bool:
        """Whether a stream lies inside the block: it has chosen something."""
        return self._choices.any_made

    def stands(self) -> None:
        """The first run will not be taken back."""
        self._buffers.forget_running()

    def take_back(self) -> None:
        """As if the first run had not been: the buffers hold what they held before it."""
        self._buffers.put_back()

    def anew(self, stream: Tensor) -> Any:
        """Another first run, on another input, in place of one that was taken back."""
        args, kwargs = self._arguments.with_stream(stream.detach().requires_grad_(self._requires_grad), self.name)
        self._look_at(list(self._module.modules()))
        with (
            torch.set_grad_enabled(self._grad_enabled),
            self._autocast.replayed(),
            self._generators.replayed(),
            self._choices.recorded(),
            self._statistics.recorded(),
            self._parameters_of_forward() if self._swapped else AS_IT_IS,
        ):
            output = self._function(*args, **kwargs)
        self._buffers.forget_unchanged()
        return output

    def again(self, stream: Tensor | None) -> Any:
        """Make the call once more on ``stream``; generators and buffers end as they were.

        A stream that needs a gradient is taken as it is: a call may overwrite what another one returned, but no leaf.

        Raises:
            ReconstructionError: a parameter or an argument has changed since.
        """
        self._check_unchanged()
        if stream is not None and not stream.requires_grad:
            stream = stream.detach().requires_grad_(self._requires_grad)
        args, kwargs = self._arguments.with_stream(stream, self.name)
        with (
            torch.set_grad_enabled(self._grad_enabled),
            self._autocast.replayed(),
            self._generators.replayed(),
            self._buffers.replayed(),
            self._statistics.replayed(),
            self._choices.replayed(),
            self._parameters_of_forward() if self._swapped else AS_IT_IS,
        ):
            return self._function(*args, **kwargs)

    @contextmanager
    def _parameters_of_forward(self) -> Iterator[None]:
        outside = [(owner, name, owner._parameters[name]) for owner, name, _ in self._swapped]
        try:
            for owner, name, tensor in self._swapped:
                owner._parameters[name] = tensor
            yield
        finally:
            for owner, name, parameter in outside:
                owner._parameters[name] = parameter

    def _check_unchanged(self) -> None:
        self._buffers.check_unchanged(self.name)
        if self._module.training != self._training:
            raise ReconstructionError(
                f"block {self.name!r} was in {'training' if self._training else 'eval'} mode in its forward and is "
                "not any more; switch modes after backward"
            )
        for reference, name, counter, requires_grad in self._parameters:
            parameter = reference()
            if parameter is None:
                continue
            if version(parameter) != counter:
                raise ReconstructionError(
                    f"block {self.name!r}: parameter {name!r} was changed between forward and backward, so the "
                    "gradient of that forward cannot be computed any more; step the optimizer after backward"
                )
            if parameter.requires_grad != requires_grad:
                raise ReconstructionError(
                    f"block {self.name!r}: requires_grad of parameter {name!r} was changed between forward and "
                    "backward; change it before forward"
                )
