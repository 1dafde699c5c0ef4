"""The error that a command ends with on purpose."""

from __future__ import annotations

from momentumnet.errors import MomentumNetError


class CommandError(MomentumNetError):
    """A command cannot do what it was asked to; the message is all that the user sees of it."""
