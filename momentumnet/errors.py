"""The exceptions that momentumnet raises on purpose, and the category of its warnings."""

from __future__ import annotations


class MomentumNetError(Exception):
    """Base class of every error that momentumnet raises on purpose.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> try:
        ...     mn.revert(torch.nn.Linear(2, 2))
        ... except mn.MomentumNetError as error:
        ...     print(error)
        the model holds no converted block; there is nothing to revert
    """


class ConversionError(MomentumNetError):
    """A model, a stream or an argument cannot be carried by a momentum stream.

    The message says what was looked at, why it does not qualify and what to do.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> mn.convert(torch.nn.Linear(2, 2), torch.randn(3, 2))
        Traceback (most recent call last):
        momentumnet.errors.ConversionError: no residual stream found in Linear. ...
    """


class ReconstructionError(MomentumNetError):
    """The backward pass could not reproduce what the forward pass computed.

    Raised instead of returning a wrong gradient: the block is not deterministic, a parameter changed between
    forward and backward, or a block overwrote its own input. The message names the block.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> net = mn.MomentumNet([torch.nn.Linear(4, 4)] * 3, gamma=0.9, use_backprop=False)
        >>> loss = net(torch.randn(2, 4)).sum()
        >>> with torch.no_grad():
        ...     _ = net.functions[0].weight.mul_(2)
        >>> loss.backward()
        Traceback (most recent call last):
        momentumnet.errors.ReconstructionError: block '...': parameter 'weight' was changed between ...
    """


class StateRangeError(MomentumNetError):
    """The values of a stream are too large for any scale of the exact state.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> net = mn.MomentumNet([torch.nn.Identity()] * 3, gamma=0.9, use_backprop=False)
        >>> net(torch.full((4,), 3e38, requires_grad=True))
        Traceback (most recent call last):
        momentumnet.errors.StateRangeError: stream 'MomentumNet': the largest magnitude, ...
    """


class StepOrderError(MomentumNetError, RuntimeError):
    """The two halves of a two-step optimizer's step were called out of order, or something else between them.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> optimizer = mn.optim.SAM([torch.ones(1, requires_grad=True)], torch.optim.SGD, lr=0.1)
        >>> optimizer.second_step()
        Traceback (most recent call last):
        momentumnet.errors.StepOrderError: second_step without first_step; ...
    """


class CheckpointError(MomentumNetError):
    """A file of an earlier run is damaged, or belongs to another run.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> net = mn.MomentumNet([torch.nn.Linear(4, 4)] * 3, gamma=0.9)
        >>> mn.load_training_state(net, {"streams": {}})
        Traceback (most recent call last):
        momentumnet.errors.CheckpointError: this training state has version None, ...
    """


class StorageError(MomentumNetError):
    """A file could not be written; the message says how many bytes it takes where the disk is full.

    Raised by the commands that write runs and results.

    Example:
        >>> import momentumnet as mn
        >>> issubclass(mn.StorageError, mn.MomentumNetError)
        True
    """


class PruningError(MomentumNetError):
    """A network holds nothing that can be pruned as asked, or computes something else once it is smaller.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> mn.prune.ChannelStructure(torch.nn.Linear(2, 2), torch.randn(3, 2))
        Traceback (most recent call last):
        momentumnet.errors.PruningError: ...
    """


class MomentumNetWarning(UserWarning):
    """What momentumnet warns of; its name puts the package's name into the line.

    Example:
        >>> import warnings
        >>> import momentumnet as mn
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", mn.MomentumNetWarning)  # an error in these lines
    """
