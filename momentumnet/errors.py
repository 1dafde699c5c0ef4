"""The exceptions that momentumnet raises on purpose, and the category of its warnings."""

from __future__ import annotations


class MomentumNetError(Exception):
    """Base class of every error that momentumnet raises on purpose."""


class ConversionError(MomentumNetError):
    """A model, a stream or an argument cannot be carried by a momentum stream.

    The message says what was looked at, why it does not qualify and what to do.
    """


class ReconstructionError(MomentumNetError):
    """The backward pass could not reproduce what the forward pass computed.

    Raised instead of returning a wrong gradient: the block is not deterministic, a parameter changed between
    forward and backward, or a block overwrote its own input. The message names the block.
    """


class StateRangeError(MomentumNetError):
    """The values of a stream are too large for any scale of the exact state."""


class StepOrderError(MomentumNetError, RuntimeError):
    """The two halves of a two-step optimizer's step were called out of order, or something else between them."""


class CheckpointError(MomentumNetError):
    """A file of an earlier run is damaged, or belongs to another run."""


class StorageError(MomentumNetError):
    """A file could not be written; the message says how many bytes it takes where the disk is full."""


class PruningError(MomentumNetError):
    """A network holds nothing that can be pruned as asked, or computes something else once it is smaller."""


class MomentumNetWarning(UserWarning):
    """What momentumnet warns of; its name puts the package's name into the line."""
