"""``momentumnet finetune``: convert a classifier, fine-tune it, and compare it with the unconverted network."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from momentumnet.cli import arguments, data, models, run_folder
from momentumnet.cli.comparison import MOMENTUM, UNCONVERTED, Comparison
from momentumnet.cli.data import ImageData
from momentumnet.cli.errors import CommandError, UsageError
from momentumnet.cli.options import (
    CommandText,
    add_choice,
    add_command,
    add_count,
    add_device,
    add_skip_broken,
    chosen_device,
    conversion,
)
from momentumnet.cli.training import Schedule
from momentumnet.conversion import convert
from momentumnet.streams.converted import converted_blocks

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

EXAMPLES = 8
RHO, ADAPTIVE_RHO = 0.05, 0.5  # Foret et al. and Kwon et al., on CIFAR-10
TEXT = CommandText(
    "convert a classifier and fine-tune it",
    """\
Convert a torchvision classifier into a Momentum ResNet, fine-tune it, and show accuracy, memory and step time beside
the unconverted network. The fine-tuned weights fit the unconverted network too.""",
    """\
examples:
  momentumnet finetune                                     ResNet-18 on the digits of scikit-learn
  momentumnet finetune --model resnet50 --data cifar10 --others checkpoint
  momentumnet finetune --data photos --weights DEFAULT     photos/train/CLASS/*.jpg and photos/val/CLASS/*.jpg
  momentumnet finetune --budget 2GiB                       what each block keeps is chosen so that a step fits
  momentumnet finetune --compare                           fine-tune the unconverted network as well
  momentumnet finetune --optimizer sam                     step with the gradient at the worst point nearby
  momentumnet finetune --resume                            go on after an interruption

Weights and data that are named and cannot be had end it with exit status 2. A checkpoint is written after every
epoch, to runs/MODEL-DATA unless --output names another folder; a second run goes to runs/MODEL-DATA-2, and --resume
goes on with the last of them. evaluate, predict and export take that folder.""",
)


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    parser = add_command(commands, "finetune", TEXT, run, conversion(others="checkpoint"))
    _add_training_arguments(parser.add_argument_group("network and data"))
    _add_optimizer_arguments(parser.add_argument_group("optimizer"))
    group = parser.add_argument_group("engine")
    meaning = (
        "memory that a training step may take, e.g. 2GiB, 'device' for what is free there, or 'least': for each block "
        "and module is chosen what takes the least time in it, in place of --others, --spare and --backward"
    )
    group.add_argument("--budget", type=arguments.budget, metavar="SIZE", help=meaning)
    add_choice(
        group, "--backward", ("auto", "reversible", "checkpointed", "stored"), "how activations come to backward"
    )
    add_choice(group, "--arithmetic", ("exact", "float"), "integers that invert bit for bit, or plain floats")
    add_device(group)
    group = parser.add_argument_group("run")
    group.add_argument("--compare", action="store_true", help="fine-tune the unconverted network too")
    group.add_argument("--output", type=Path, metavar="DIR", help="folder for checkpoints, weights and report.json")
    again = group.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on after the last finished epoch in --output")
    again.add_argument("--overwrite", action="store_true", help="replace the run that is in --output")


def _add_training_arguments(group: Any) -> None:
    group.add_argument(
        "--model", type=arguments.classifier, default="resnet18", help="torchvision classifier (default: %(default)s)"
    )
    group.add_argument(
        "--weights",
        metavar="DEFAULT|none|FILE",
        help="pretrained weights of torchvision by name, random ones, or a state dict (default: DEFAULT, or without "
        "network random ones, and a line says so)",
    )
    group.add_argument(
        "--data",
        type=arguments.data_source,
        default="digits",
        metavar="digits|cifar10|FOLDER",
        help="what to fine-tune on; a folder holds train/CLASS and val/CLASS (default: %(default)s)",
    )
    add_skip_broken(group)
    group.add_argument("--image-size", type=arguments.positive, metavar="N", help="side that images are brought to")
    add_count(group, "--epochs", 3)
    add_count(group, "--batch-size", 64)
    group.add_argument(
        "--lr", type=arguments.learning_rate, default=1e-3, metavar="R", help="largest learning rate (default: 0.001)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")


def _add_optimizer_arguments(group: Any) -> None:
    meaning = "AdamW, or sharpness-aware minimisation around it: two passes a step"
    add_choice(group, "--optimizer", ("adamw", "sam"), meaning)
    group.add_argument(
        "--rho",
        type=arguments.radius,
        metavar="R",
        help=f"radius of sam (default: {RHO}; with --adaptive {ADAPTIVE_RHO})",
    )
    group.add_argument("--adaptive", action="store_true", help="adaptive sam, which moves larger weights further")


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        UsageError: Weights, images or a checkpoint cannot be used, or options do not fit together.
        ConversionError: The model has no stream that can be carried.
    """
    from momentumnet.cli.report import Report

    rho = _radius(options)
    if options.spare and options.backward == "stored":
        raise UsageError(
            "--backward stored keeps all activations, so there is nothing to --spare; leave out one of them"
        )
    if options.budget is not None and (options.others != "checkpoint" or options.spare or options.backward != "auto"):
        raise UsageError("--budget chooses for each block and module; leave out --others, --spare and --backward")
    report = Report(as_json=options.json)
    name = f"{options.model}-{Path(options.data).resolve().name}"
    with run_folder.opened(options.output, name, resume=options.resume, overwrite=options.overwrite) as folder:
        _run(options, rho, report, folder)


def _run(options: argparse.Namespace, rho: float | None, report: Report, folder: Path) -> None:
    device = chosen_device(options)
    torch.manual_seed(options.seed)
    image_size = options.image_size or max(data.default_size(options.data), models.smallest_size(options.model))
    images = data.load_images(options.data, image_size=image_size, say=report.line, skip_broken=options.skip_broken)
    model, weights = models.build_classifier(
        options.model, weights=options.weights, classes=images.classes, image_size=image_size, say=report.line
    )
    report.line(
        f"{options.model} (weights: {weights}) on {images.name}: {len(images.train)} training and "
        f"{len(images.validation)} validation images of {image_size} x {image_size}, {images.classes} classes, {device}"
    )
    model.to(device)
    comparison = Comparison(
        networks={MOMENTUM: _convert(model, images, options, device), UNCONVERTED: model},
        images=images,
        device=device,
        schedule=_schedule(options, images, rho),
        output=folder,
        settings=_settings(options, images, weights, rho),
        report=report,
    )
    try:
        comparison.run(trained=(MOMENTUM, UNCONVERTED) if options.compare else (MOMENTUM,), resume=options.resume)
    except KeyboardInterrupt:
        report.line(f"Interrupted: the same command with --resume goes on after the last finished epoch, in {folder}.")
        raise


def _radius(options: argparse.Namespace) -> float | None:
    """SAM's radius; None without SAM."""
    if options.optimizer == "sam":
        return (ADAPTIVE_RHO if options.adaptive else RHO) if options.rho is None else options.rho
    for name, given in (("--rho", options.rho is not None), ("--adaptive", options.adaptive)):
        if given:
            raise UsageError(
                f"{name} is an option of sam, and the optimizer is {options.optimizer}: add --optimizer sam"
            )
    return None


def _schedule(options: argparse.Namespace, images: ImageData, rho: float | None) -> Schedule:
    return Schedule(
        epochs=options.epochs,
        batch_size=_batch_size(options, images),
        lr=options.lr,
        seed=options.seed,
        rho=rho,
        adaptive=options.adaptive,
    )


def _batch_size(options: argparse.Namespace, images: ImageData) -> int:
    return min(options.batch_size, len(images.train))


def _convert(model: nn.Module, images: ImageData, options: argparse.Namespace, device: torch.device) -> nn.Module:
    if options.budget is not None:  # for the batches as they will be
        examples = torch.stack([images.train[index][0] for index in range(_batch_size(options, images))])
        budgeted = {"gamma": options.gamma, "arithmetic": options.arithmetic, "budget": options.budget}
        planned = convert(model, examples.to(device), **budgeted)
        if not any(True for _ in converted_blocks(planned)):
            raise CommandError(
                f"{options.model} has no stream, and nothing is recomputed within --budget {options.budget}, so there "
                "is nothing to convert"
            )
        return planned
    examples = torch.stack([images.train[index][0] for index in range(min(EXAMPLES, len(images.train)))])
    return convert(
        model,
        examples.to(device),
        gamma=options.gamma,
        others=options.others,
        # The example is a part of a batch, and activations grow with it.
        spare=options.spare * len(examples) // _batch_size(options, images),
        backward=options.backward,
        arithmetic=options.arithmetic,
    )


def _settings(options: argparse.Namespace, images: ImageData, weights: str, rho: float | None) -> dict[str, object]:
    """What makes the run the one that it is, as plain values."""
    return {
        "model": options.model,
        "weights": weights,
        "data": images.name,
        "image_size": images.image_size,
        "gamma": str(options.gamma),
        "others": options.others,
        "spare": options.spare,
        "backward": options.backward,
        "arithmetic": options.arithmetic,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": options.lr,
        "seed": options.seed,
        "optimizer": options.optimizer,
        "rho": rho,
        "adaptive": options.adaptive,
        **({} if options.budget is None else {"budget": options.budget}),  # older runs go on without
    }
