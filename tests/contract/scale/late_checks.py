"""Networks whose range is checked with backward."""

from __future__ import annotations

import copy

from torch import nn

import momentumnet as mn
from tests.contract.outside.kept_blocks import Wide
from tests.contract.read_counts import Growing, rows
from tests.contract.reference import loss_of


class WideGrowing(Growing):
    """Keeps more than the stream's state takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Wide().inner


def late(net: nn.Module) -> nn.Module:
    """A copy that is checked late, behind the first pass, which is looked at as before."""
    net = copy.deepcopy(net)
    mn.set_range_check(net, "backward")
    loss_of(net(rows().to(next(net.parameters()).dtype))).backward()
    net.zero_grad(set_to_none=True)
    return net
