"""When a converted network looks whether its values fit their scale: as a forward ends, or with its backward."""

from __future__ import annotations

from torch import nn

from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.converted import is_converted, streams_of


def set_range_check(model: nn.Module, when: str) -> None:
    """Say when it is looked whether the values of a pass fitted their scale, from the next forward on.

    A stream is carried in integers of a scale that was chosen by earlier passes, and that leaves room above them.
    Whether a pass has kept to it is known on the device, and looking there waits for all that was asked of the device
    before.

    - "forward", the default: it is looked as a stream ends, once. A pass that went wrong is played again before anybody
      has seen its values.
    - "backward": a forward waits for nothing. A pass that went wrong returns NaN, and its backward raises
      `StateRangeError` as it ends, together with the check of what it has reconstructed: leave the step out and run it
      again. What the forward has moved by then stays moved: NaN stays in the running statistics of norms behind the
      stream, so keep a copy of the buffers. NaN or Inf in a block are told so, too, instead of being handed on to the
      loss. Where no backward comes, a later pass learns of it. x and v at rest have room for four times those of the
      pass before, which takes up to half a byte an element more. Numbers are the same.

    Take "backward" on a GPU where the host is what is slow, and in a loop that catches the error and puts the buffers
    back; see docs/fit-your-gpu.md. In several processes the error comes in the one whose pass it was, and the others go
    on with its gradients: keep "forward" there, or let all of them know before the optimizer steps.

    On a CPU there is nothing to wait for, and "backward" gains nothing. The first passes of a stream, those of streams
    with ``arithmetic="float"``, whose blocks call other processes or that are left before their last block are looked
    at as before. Copies and pickles keep the setting; `describe` and state dicts do not know of it.

    Args:
        model: a converted model, wrapped (``DistributedDataParallel``, an adapter) or not, or one that holds
            `MomentumNet` or `ReversibleSequential` modules.
        when: "forward" or "backward".

    Raises:
        ConversionError: the model holds no stream, as where a plan has chosen gamma 0.
        ValueError: ``when`` is something else; no stream is changed.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> x = torch.randn(2, 5, 16)
        >>> converted = mn.convert(model, x)
        >>> mn.set_range_check(converted, "backward")
        >>> converted(x).sum().backward()
    """
    streams = streams_of(model)
    if not streams:
        why = (
            "it is converted without any, as by a plan at gamma 0, and its forward looks at nothing; leave this out, "
            "or give the plan gamma=, e.g. gamma=1/8"
            if is_converted(model)
            else "convert it first"
        )
        raise ConversionError(f"the model holds no stream whose range could be checked; {why}")
    for stream in streams:
        stream.set_range_check(when)
