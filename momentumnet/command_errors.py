"""The errors that a command ends with on purpose, and the exit status of each."""

from __future__ import annotations

from momentumnet.errors import MomentumNetError


class CommandError(MomentumNetError):
    """A command cannot do what it was asked to; the message is all that the user sees of it.

    Attributes:
        status: The exit status.
    """

    status = 1


class UsageError(CommandError):
    """Options, files or data that were given cannot be used; the message says how to mend it."""

    status = 2


class MachineError(CommandError):
    """The machine lacks what is needed: disk, memory, a device, a package, the network, a right to write."""

    status = 3
