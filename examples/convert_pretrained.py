"""Convert pretrained CIFAR ResNets without losing what they learned, and fine-tune one in less memory.

    python examples/convert_pretrained.py
    python examples/convert_pretrained.py --weights resnet20-12fca82f.th resnet56-4bfd9763.th
    python examples/convert_pretrained.py table --weights resnet56-4bfd9763.th --data cifar10_small.npz

The checkpoints are those of https://github.com/akamaster/pytorch_resnet_cifar10. Without any, a small network is
trained for a moment on scikit-learn's digits and takes their place: that needs neither network nor files.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from cifar import finetune, table
from cifar.resnet import load_checkpoint
from torch import nn

import momentumnet as mn
from momentumnet.bench.data.images import ImageData, load_cifar10, load_digits, load_npz
from momentumnet.bench.networks.cifar_networks import CifarResNet

PARTS = """\
parts:
  table     accuracy of the converted network without fine-tuning, against gamma, with the flush and without
  finetune  one epoch at gamma 1/8 from the same seed, with the reversible backward and with stored activations
  all       both (the default)

exit code: 0; 1 where a result is not what it has to be; 2 where an argument cannot be used
"""
DIGITS_EPOCHS = 6
DIGITS_LEARNING_RATE = 0.1
SHORT_GAMMAS = ("0", "1/8", "0.9")
SHORT_STEPS = 3


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=PARTS, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=("table", "finetune", "all"), default="all", help="see below")
    parser.add_argument("--weights", nargs="+", type=Path, metavar="FILE", help="checkpoints of CIFAR ResNets")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE.npz",
        help="images as arrays x_train, y_train, x_test, y_test (default: CIFAR-10 by torchvision, into ./data)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write all that was measured there")
    parser.add_argument("--short", action="store_true", help="a quick look: three gammas, three steps of fine-tuning")
    options = parser.parse_args(arguments)
    if options.data is not None and options.weights is None:
        parser.error("--data needs --weights: the images are for networks that have been trained on such images")
    if options.output is not None and not options.output.parent.is_dir():
        parser.error(f"--output: there is no folder {options.output.parent}")
    return parser, options


def load(options: argparse.Namespace) -> tuple[dict[str, nn.Module], ImageData]:
    """The networks by name, in eval mode, and their images."""
    if options.weights is None:
        data = load_digits()
        print(f"no --weights: training a ResNet-20 on {data.name} for {DIGITS_EPOCHS} epochs first")
        return {"resnet20-digits": trained_on(data)}, data
    nets: dict[str, nn.Module] = {path.stem: load_checkpoint(path) for path in options.weights}
    return nets, load_cifar10() if options.data is None else load_npz(options.data)


def trained_on(data: ImageData) -> nn.Module:
    """A small network, trained for a moment."""
    torch.manual_seed(finetune.SEED)
    net = CifarResNet(20)
    for epoch in range(DIGITS_EPOCHS):
        label = f"training, epoch {epoch + 1} of {DIGITS_EPOCHS}"
        finetune.train_epoch(net, data, label, learning_rate=DIGITS_LEARNING_RATE, seed=epoch)
    return net


def machine() -> dict[str, Any]:
    """Where and when this was measured."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "momentumnet": mn.__version__,
    }


def processor() -> str:
    """The processor's name as Linux knows it, or else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


def run_table(nets: dict[str, nn.Module], data: ImageData, result: dict[str, Any], *, short: bool) -> bool:
    """Measure and print the table of each network; whether every cell is what it has to be."""
    cells = []
    for name, net in nets.items():
        row = table.measure_table(name, net, data, SHORT_GAMMAS if short else table.GAMMAS)
        print(f"\n{table.format_table(name, data, row)}", flush=True)
        result.setdefault("table", {})[name] = [asdict(cell) for cell in row]
        cells += row
    return all(cell.as_expected for cell in cells)


def run_finetuning(nets: dict[str, nn.Module], data: ImageData, result: dict[str, Any], *, short: bool) -> bool:
    """Fine-tune the largest of the networks with both kinds of backward; whether they agree."""
    name = max(nets, key=lambda name: sum(parameter.numel() for parameter in nets[name].parameters()))
    comparison = finetune.compare_backwards(nets[name], data, steps=SHORT_STEPS if short else None)
    print(f"\n{finetune.format_comparison(name, data, comparison)}", flush=True)
    result["finetune"] = {"network": name, **asdict(comparison)}
    return comparison.as_expected


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit code."""
    parser, options = parse(arguments)
    # One line where a stream had to widen the range of its fixed-point numbers: nothing is lost, and nothing is silent.
    logging.basicConfig(format="%(message)s")
    try:
        nets, data = load(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    result: dict[str, Any] = {**machine(), "data": data.name, "test_images": len(data.x_test)}
    print(", ".join(f"{key} {value}" for key, value in result.items()))
    good = True
    if options.part in ("table", "all"):
        good &= run_table(nets, data, result, short=options.short)
    if options.part in ("finetune", "all"):
        good &= run_finetuning(nets, data, result, short=options.short)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if not good:
        print("at least one result is not what it has to be", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
