"""Forward time of a ResNet-20 without half of its channels, and without a third of its blocks: masked and shrunk.

python -m benchmarks.structured --output benchmarks/results
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.cli.bench.cifar_networks import build
from momentumnet.cli.bench.results import Results, Row, Table, write_markdown
from momentumnet.cli.bench.timing import interleaved_seconds
from momentumnet.prune import BlockStructure, ChannelStructure, apply_masks, magnitude_scores

NETWORK, PIXELS = "resnet20_bn", 32
FRACTIONS = {"channels": Fraction(1, 2), "blocks": Fraction(1, 3)}


def networks(example: Tensor) -> dict[tuple[str, str], nn.Module]:
    """By what is gone and how: the dense network, and two ways to compute each of two smaller ones."""
    torch.manual_seed(0)
    dense = build(NETWORK).eval()
    found = {("nothing", "dense"): dense}
    structures = {"channels": ChannelStructure(dense, example), "blocks": BlockStructure(dense, example)}
    for unit, structure in structures.items():
        # By layer: with random weights the global order of magnitudes is that of the layers' scales.
        scope = "layer" if unit == "channels" else "global"
        masks = structure.prune(magnitude_scores(dense), fraction=FRACTIONS[unit], scope=scope)
        masked = copy.deepcopy(dense)
        apply_masks(masked, masks)
        gone = f"{FRACTIONS[unit]} of the {unit}"
        found[gone, "masked"], found[gone, "shrunk"] = masked, structure.shrink(dense, masks)
    return found


def multiplications(net: nn.Module, images: Tensor) -> int:
    """Of one pass: each entry of a weight once for each position and image that it is applied to."""
    total = 0

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal total
        places = output.numel() // output.shape[1]
        total += places * module.weight.numel()  # type: ignore[union-attr,operator]

    layers = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    net(images)
    for handle in handles:
        handle.remove()
    return total


def measure(options: argparse.Namespace) -> list[Row]:
    images = torch.randn(options.batch_size, 3, PIXELS, PIXELS)
    found = networks(images[:2])

    def run(net: nn.Module) -> Callable[[], Tensor]:
        return lambda: net(images)

    with torch.no_grad():
        operations = {"; ".join(key): run(net) for key, net in found.items()}
        seconds = interleaved_seconds(operations, repeats=options.repeats, device=torch.device("cpu"))
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


def tables(rows: list[Row], settings: dict[str, Any]) -> list[Table]:
    cells = [
        (
            row["gone"],
            row["network"],
            f"{row['parameters'] / 1e3:.0f}",
            f"{row['multiplications'] / 1e6:.1f}",
            f"{1e3 * row['seconds']:.1f}",
            f"{row['ratio']:.2f}",
        )
        for row in rows
    ]
    notes = [
        f"ResNet-20 with batch norms, eval mode, batches of {settings['batch_size']} images of {PIXELS} x {PIXELS} "
        f"pixels; medians of {settings['repeats']} repeats that take turns, and their ratio to the dense network's. "
        "Channels are those inside the blocks, half of each layer's; blocks are those that keep the shape. "
        "Multiplications: of one image."
    ]
    columns = ("gone", "network", "parameters, thousands", "multiplications, millions", "ms", "of dense")
    return [Table("Forward time after structured pruning", columns, cells, notes=notes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args()
    settings = {"batch_size": options.batch_size, "repeats": options.repeats}
    path = options.output / "structured.json"
    results = Results.begin(path, command="structured", device=torch.device("cpu"), settings=settings)
    results.add(measure(options))
    table = tables(results.rows, settings)
    print(table[0].markdown())
    write_markdown(path.with_suffix(".md"), table, results.header)


if __name__ == "__main__":
    main()
