"""Who runs what in a converted model: every block of its streams, and modules outside that are treated otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import nn

from momentumnet.core.outside.checkpoint import Checkpoint, CheckpointChain
from momentumnet.core.outside.offload import Offload, Stored
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.converted import VELOCITY_NAME, Role, assign, release


def apply(
    model: nn.Module,
    runners: Sequence[MomentumStream],
    others: Sequence[Role] = (),
    by_forward: Collection[str] = (),
) -> None:
    """Give every block of the streams its role, and every module outside that is to be recomputed or offloaded.

    Args:
        model: that holds them.
        runners: the streams.
        others: the roles of the modules outside.
        by_forward: names of modules whose ``forward`` is called, and not they themselves.

    Raises:
        ConversionError: a module cannot have its role; none has one then.
    """
    taken: dict[str, str] = {}
    for runner in runners:
        for name in dict.fromkeys(runner.blocks):
            if name in taken:
                raise ConversionError(f"block {name!r} stands in two streams, {taken[name]!r} and {runner.name!r}")
            taken[name] = runner.name
        if runner.velocity_module is not None and isinstance(model.get_submodule(runner.blocks[0]), nn.Sequential):
            raise ConversionError(
                f"the first block {runner.blocks[0]!r} of stream {runner.name!r} is an nn.Sequential, which would call "
                "the module given as initial_velocity as one of its own; wrap the block in a module with a forward of "
                "its own"
            )
    roles = [Role(name, runner) for runner in runners for name in dict.fromkeys(runner.blocks)]
    roles = _merged([*roles, *others])
    for index, role in enumerate(roles):
        try:
            assign(model.get_submodule(role.name), role, by_forward=role.name in by_forward)
        except ConversionError:
            for earlier in roles[:index]:
                release(model.get_submodule(earlier.name))
            raise
    for runner in runners:
        if runner.velocity_module is not None:
            model.get_submodule(runner.blocks[0]).add_module(VELOCITY_NAME, runner.velocity_module)


def recomputed(parts: Iterable[Sequence[str]]) -> list[Role]:
    """The roles of what is recomputed outside the streams: names of a module each, or of the layers of a chain."""
    checkpoint, roles = Checkpoint(), []
    for names in parts:
        runner = checkpoint if len(names) == 1 else CheckpointChain(names[0], names[-1])
        roles += [Role(name, runner) for name in names]
    return roles


def offloaded(units: Iterable[Offload]) -> list[Role]:
    """The roles of units whose saved tensors go to host memory."""
    return [Role(name, Stored(), unit) for unit in units for name in unit.names]


def _merged(roles: Sequence[Role]) -> list[Role]:
    """The roles, where those that offload are one with what runs the module otherwise.

    Also those of modules behind which the device lets go of what was moved.
    """
    found = [role for role in roles if role.offload is None]
    by_name = {role.name: role for role in found}

    def of(name: str) -> Role:
        if name not in by_name:
            found.append(by_name.setdefault(name, Role(name, Stored())))
        return by_name[name]

    for role in roles:
        if role.offload is not None:
            of(role.name).offload = role.offload
            if role.offload.settled_behind is not None:
                of(role.offload.settled_behind).settles = True
    return found
