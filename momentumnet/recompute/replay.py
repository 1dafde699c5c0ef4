"""One call of one block, kept so that it can be made again with the same result, and leave no trace the second time.

What a call depends on beside its input: further arguments, the random generators, autocast, PyTorch's switches, grad
mode, and buffers that the block itself changes. All of it is recorded here, and only what the call really used is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.recompute.arguments.arguments import Arguments
from momentumnet.recompute.attributes.left_attributes import Attributes
from momentumnet.recompute.attributes.moved_parameters import MovedParameters, requiring_gradients
from momentumnet.recompute.attributes.parameters import Parameters
from momentumnet.recompute.attributes.standing import without_scripts
from momentumnet.recompute.buffers.batch_statistics import BatchStatistics
from momentumnet.recompute.buffers.buffers import Buffers
from momentumnet.recompute.buffers.buffers_on_demand import as_they_are
from momentumnet.recompute.own_gradients import is_about_hooks, taking_a_gradient
from momentumnet.recompute.saved.origins import Given, Origins
from momentumnet.recompute.surroundings.autocast import Autocast
from momentumnet.recompute.surroundings.choices import Choices, recomputing
from momentumnet.recompute.surroundings.generators import AS_IT_IS, HOSTS, Generators
from momentumnet.recompute.surroundings.modes import Modes
from momentumnet.recompute.surroundings.switches import Switches
from momentumnet.recompute.suspects import Suspects, hook_count, note_thread


class BlockCall:
    """One call ``function(*args, **kwargs)`` of a block: `first` makes it, `again` makes it once more.

    Args:
        name: the block's dotted name, for errors.
        module: whose buffers and parameters the call uses.
        function: what to call; ``module`` itself or its unconverted ``__call__``.
        stream: the tensor among the arguments that will be handed in anew; None to keep them all.
        args: positional arguments.
        kwargs: keyword arguments.
        own: those, by position or keyword, that no other call is given.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        function: Callable[..., Any],
        stream: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        own: Collection[int | str] = (),
    ) -> None:
        self.name = name
        self.dtype = torch.float32 if stream is None else stream.dtype
        self._requires_grad = stream is not None and stream.requires_grad
        self._grad_enabled = torch.is_grad_enabled()
        self._module, self._function = module, function
        self._arguments = Arguments(module, stream, args, kwargs, own)
        self._left: list[Tensor] = []  # by `anew`, in the objects and containers that it was given
        self._owners = owners = _modules_of(module)
        devices = _devices_of(self._arguments.device if stream is None else stream.device, owners)
        self._autocast = Autocast(next((device for device in devices if device.type not in HOSTS), devices[0]))
        self._generators = Generators(*devices)
        self._switches = Switches()
        self._look_at(owners)
        self._modes = Modes(owners)
        self._hooks = [(owner, hook_count(owner)) for owner in owners]
        self._parameters = Parameters(name, owners)

    def _look_at(self, owners: list[nn.Module]) -> None:
        """Begin to record what a first run does."""
        self._buffers = Buffers(owners)
        self._statistics = BatchStatistics(owners)
        plain = without_scripts(owners)
        self._attributes = Attributes(owners[0], plain)
        self._moved = MovedParameters(owners[0], plain)
        self._choices = Choices()

    def first(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, may_be_taken_back: bool = False) -> Any:
        """Make the call, and forget what it turned out not to use.

        With ``may_be_taken_back``, `take_back` and `anew` are possible until `stands` says that they are not needed.
        """
        if may_be_taken_back:
            self._buffers.kept_for_another_first_run()
        if not recomputing():
            note_thread()
        try:
            with self._choices.recorded(), self._statistics.recorded(), self._buffers.watched():
                output = self._function(*args, **kwargs)
        except RuntimeError as error:
            if is_about_hooks(error):
                raise taking_a_gradient(self.name) from error
            raise
        self._generators.forget_unused()
        self._buffers.forget_unchanged()
        self._statistics.forget(self._buffers.norms_read)
        self._attributes.forget_unchanged()
        self._parameters.expect(self._moved.forget_unmoved())
        self._arguments.notice_changes(args, kwargs, may_be_taken_back=may_be_taken_back)
        return output

    def origins(self, stream: Tensor | None) -> Origins:
        """The tensors that the call is given, with ``stream`` in the stream's place; to be asked while it runs."""
        return Origins(self._given(stream))

    def _given(self, stream: Tensor | None) -> Iterator[Given]:
        if stream is not None:
            yield "input", 0, "", stream
        for number, owner in enumerate(self._owners):
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    yield "parameter", number, name, parameter
            for name, buffer in as_they_are(owner) if owner._buffers else ():
                if buffer is not None:
                    yield "buffer", number, name, buffer
        for number, argument in self._arguments.tensors():
            yield "argument", number, "", argument

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The module and all inside of it, each once."""
        return self._owners

    @property
    def suspects(self) -> Suspects:
        """What may have made its recompute another one."""
        changed, draws = self._arguments.changed, self._generators.used
        return Suspects(self.name, self._module, changed, draws, self._hooks, self._moved.replaced)

    @property
    def holds_streams(self) -> bool:
        """Whether a stream lies inside the block: it has chosen something."""
        return self._choices.any_made

    def stands(self) -> None:
        """The first run will not be taken back."""
        self._buffers.forget_running()
        self._arguments.stand()

    @property
    def can_be_made_over(self) -> bool:
        """Whether `anew` can hand over all that the first run was given."""
        return self._arguments.can_be_given_anew and self._moved.can_be_put_back

    def take_back(self) -> None:
        """As if the first run had not been: buffers, attributes and parameters hold what they held before it."""
        self._buffers.put_back()
        self._attributes.put_back()
        self._moved.put_back()

    def anew(self, stream: Tensor) -> Any:
        """Another first run, on another input, in place of one that was taken back."""
        args, kwargs = self._arguments.with_stream(stream.detach().requires_grad_(self._requires_grad), self.name)
        self._look_at(self._owners)
        with (
            torch.set_grad_enabled(self._grad_enabled),
            self._switches.replayed(),
            self._autocast.replayed(),
            self._generators.replayed(),
            self._arguments.generators.replayed(),
            self._choices.recorded(),
            self._statistics.recorded(),
            self._parameters.of_forward() if self._parameters.swapped else AS_IT_IS,
        ):
            output = self._function(*args, **kwargs)
        self._buffers.forget_unchanged()
        self._statistics.forget(self._buffers.norms_read)
        self._attributes.forget_unchanged()
        self._parameters.expect(self._moved.forget_unmoved())
        self._left = self._arguments.shared(args, kwargs)
        return output

    def put_right(self, later: Collection[BlockCall]) -> None:
        """After `anew`: objects and containers, and what ``later`` calls keep of them, hold what they should have held.

        Raises:
            RuntimeError: a tensor there is of another size, or has no memory of its own.
            ValueError: it cannot be told which tensor of the first run another one stands for.
        """
        for wrong, right in self._arguments.rewritten(self._left):
            if wrong.data_ptr() != right.data_ptr():
                wrong.data.copy_(right.detach())  # through .data: nobody has changed it
            for call in later:
                call._arguments.renew(wrong, right.detach())
        self._left = []

    def again(self, stream: Tensor | None, *, unseen: bool = False) -> Any:
        """Make the call once more on ``stream``; generators, buffers and what it leaves in attributes end as they were.

        A stream that needs a gradient is taken as it is: a call may overwrite what another one returned, but no leaf.

        Args:
            stream: what is handed in anew.
            unseen: whether nobody will look at what it returns, so that other parameters would not be noticed by it.

        Raises:
            ReconstructionError: a parameter or an argument has changed since.
        """
        self._buffers.check_unchanged(self.name)
        toggled = self._parameters.check_unchanged(self.name)
        if stream is not None and not stream.requires_grad:
            stream = stream.detach().requires_grad_(self._requires_grad)
        args, kwargs = self._arguments.with_stream(stream, self.name)
        with (
            torch.set_grad_enabled(self._grad_enabled),
            self._switches.replayed(),
            self._modes.replayed(),
            self._autocast.replayed(),
            self._generators.replayed(),
            self._arguments.generators.replayed(),
            self._buffers.replayed(self._statistics.given_again()),
            requiring_gradients(toggled) if toggled else AS_IT_IS,
            self._moved.replayed(),
            self._choices.replayed(),
            self._parameters.of_forward() if self._parameters.swapped else AS_IT_IS,
            self._attributes.replayed(),
            self._statistics.replayed(),  # behind attributes, among which it puts a forward for each norm
        ):
            if unseen:
                self._moved.check_unmoved(self.name)
            return self._function(*args, **kwargs)


def _modules_of(module: nn.Module) -> list[nn.Module]:
    """The module and all inside it, each once; without the names that `nn.Module.modules` makes on its way."""
    found = {id(module): module}
    owners = [module]
    for owner in owners:
        for child in owner._modules.values():
            if child is not None and id(child) not in found:
                found[id(child)] = child
                owners.append(child)
    return owners


def _devices_of(given: torch.device, owners: Iterable[nn.Module]) -> list[torch.device]:
    """Where a call may compute: where its input lies, and where parameters do, to which it may move that."""
    found = {given: None}
    for owner in owners:
        for parameter in owner._parameters.values():
            if parameter is not None:
                found[parameter.device] = None
                break
    return list(found)
