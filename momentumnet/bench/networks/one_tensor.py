"""Any network as one that takes and returns a tensor, to be measured beside the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from momentumnet.bench.networks.measured import Network
from momentumnet.streams.blocks.nested import floating, tensors_in
from momentumnet.streams.finding.discover import find_streams
from momentumnet.streams.tracing.trace import call_with_example


class OneTensor(nn.Module):
    """The network as a function of the first tensor that it takes; the others stay what they are.

    Args:
        network: Takes and returns anything.
        inputs: As `momentumnet.convert` takes them.
    """

    def __init__(self, network: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.network = network
        leaves, self._structure = pytree.tree_flatten(inputs)
        self._place = next(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
        self._leaves = leaves

    def forward(self, x: Tensor) -> Tensor:
        leaves = [leaf.to(x.device) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        leaves[self._place] = x
        output = call_with_example(self.network, pytree.tree_unflatten(leaves, self._structure))
        return next(tensor for tensor in tensors_in(output) if floating(tensor))

    def example(self) -> Tensor:
        """The tensor that it takes."""
        found: Tensor = self._leaves[self._place]
        return found


def network_of(model: nn.Module, inputs: Any) -> Network:
    """The model to be measured: its blocks are those of the streams that are found in it.

    Args:
        model: The network.
        inputs: As `momentumnet.convert` takes them.

    Returns:
        The network. Without containers, where the blocks of a stream do not stand in a row of their own.
    """
    single = OneTensor(model, inputs)
    containers = [f"network.{stream.path}".rstrip(".") for stream in find_streams(model, inputs)]
    in_rows = all(isinstance(single.get_submodule(path), (nn.Sequential, nn.ModuleList)) for path in containers)
    return Network(lambda: single, single.example, tuple(dict.fromkeys(containers)) if in_rows else ())
