"""What could not be looked at when it happened: one flag a device, for passes that CUDA replays as a graph.

While a graph is recorded nothing can be read, and when it is replayed no Python runs. So the graph itself sets the flag
of its device where a state was not reconstructed or a value did not fit its scale, and `check_replays` reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from momentumnet.arithmetic.reports import is_hollow, read
from momentumnet.errors import ReconstructionError

_FLAGS: dict[torch.device, Tensor] = {}


def note(wrong: Tensor) -> None:
    """Remember whether any of the booleans ``wrong`` is set; of a fake tensor nothing can be remembered."""
    if is_hollow(wrong):
        return
    flag_on(wrong.device).logical_or_(wrong.any())


def flag_on(device: torch.device) -> Tensor:
    """The flag of a device. It has to be there before a graph is recorded that sets it, in memory of its own."""
    if device not in _FLAGS:
        _FLAGS[device] = torch.zeros((), dtype=torch.bool, device=device)
    return _FLAGS[device]


def check_replays() -> None:
    """Look at what replayed CUDA graphs of converted networks could not look at themselves.

    Call it every now and then, and before results count: it waits for the device. A graph's backward gives gradients
    whether or not they could be trusted; this tells whether all since the last call could.

    Raises:
        ReconstructionError: since the last call, a block of a replayed graph was not reconstructed, or a value outgrew
            its scale: gradients of these replays may be wrong. The flag is cleared.

    Example:
        >>> import momentumnet as mn
        >>> mn.check_replays()  # after graph.replay(); here nothing was replayed, so there is nothing to tell
    """
    wrong = [device for device, flag in _FLAGS.items() if read(flag)]
    for device in wrong:
        _FLAGS[device].zero_()
    if wrong:
        raise ReconstructionError(
            f"a replayed graph on {', '.join(map(str, wrong))} has computed what cannot be trusted since the last "
            "check: a block did not compute the same in backward as in forward (does it draw random numbers?), or "
            "values outgrew their scale. Run the step once without the graph to see which block it is, and record "
            "the graph anew."
        )
