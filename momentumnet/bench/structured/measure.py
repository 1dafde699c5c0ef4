"""The networks of ``bench structured``, and the time of their forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.bench.measuring.timing import interleaved_seconds
from momentumnet.bench.networks.cifar_networks import build
from momentumnet.bench.reporting.results import Row
from momentumnet.prune import BlockStructure, ChannelStructure, apply_masks, magnitude_scores

NETWORK, PIXELS = "resnet20_bn", 32
# A third of the 9 blocks: 7 of them keep the shape and can go.
CASES = {"half of the channels": ("channels", Fraction(1, 2)), "a third of the blocks": ("blocks", Fraction(3, 7))}


def networks(example: Tensor) -> dict[tuple[str, str], nn.Module]:
    """By what is gone and how: the dense network, and two ways to compute each of two smaller ones."""
    torch.manual_seed(0)
    dense = build(NETWORK).eval()
    found = {("nothing", "dense"): dense}
    structures: dict[str, ChannelStructure | BlockStructure] = {
        "channels": ChannelStructure(dense, example),
        "blocks": BlockStructure(dense, example),
    }
    for gone, (unit, fraction) in CASES.items():
        structure = structures[unit]
        # By layer: with random weights the global order of magnitudes is that of the layers' scales.
        scope = "layer" if unit == "channels" else "global"
        masks = structure.prune(magnitude_scores(dense), fraction=fraction, scope=scope)
        masked = copy.deepcopy(dense)
        apply_masks(masked, masks)
        found[gone, "masked"], found[gone, "shrunk"] = masked, structure.shrink(dense, masks)
    return found


def multiplications(net: nn.Module, images: Tensor) -> int:
    """Of one pass: each entry of a weight once for each position and image that it is applied to."""
    total = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal total
        places = output.numel() // output.shape[1]
        total += places * module.weight.numel()  # type: ignore[operator]

    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    net(images)
    for handle in handles:
        handle.remove()
    return total


def measure(*, batch_size: int, repeats: int) -> list[Row]:
    """A row for each network.

    Args:
        batch_size: Images in a batch.
        repeats: Timed runs of each network, which take turns.
    """
    images = torch.randn(batch_size, 3, PIXELS, PIXELS)
    found = networks(images[:2])

    def run(net: nn.Module) -> Callable[[], Tensor]:
        return lambda: net(images)

    with torch.no_grad():
        operations = {"; ".join(key): run(net) for key, net in found.items()}
        seconds = interleaved_seconds(operations, repeats=repeats, device=torch.device("cpu"))
        dense = seconds["nothing; dense"]
        return [
            {
                "gone": gone,
                "network": how,
                "parameters": sum(parameter.numel() for parameter in net.parameters()),
                "multiplications": multiplications(net, images[:1]),
                "seconds": seconds[f"{gone}; {how}"],
                "ratio": seconds[f"{gone}; {how}"] / dense,
            }
            for (gone, how), net in found.items()
        ]
