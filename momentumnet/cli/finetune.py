"""``momentumnet finetune``: convert a classifier, fine-tune it, and compare it with the unconverted network."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from momentumnet.cli import arguments, training_options
from momentumnet.cli.options import (
    CommandText,
    add_command,
    chosen_device,
    conversion,
)
from momentumnet.command_errors import MachineError, UsageError
from momentumnet.conversion.conversion import convert
from momentumnet.description.description import describe
from momentumnet.finetuning import compiling, data, model_sources, models, processes, run_folder
from momentumnet.finetuning.comparison import MOMENTUM, UNCONVERTED, Comparison
from momentumnet.finetuning.data import ImageData
from momentumnet.finetuning.recipe import PRECISIONS, Recipe, freeze
from momentumnet.finetuning.trained import CONFIG, Trained
from momentumnet.finetuning.training import begin_training
from momentumnet.listing import listed
from momentumnet.memory import format_bytes
from momentumnet.planner.machine.budget import ANEW, PRESENT
from momentumnet.planner.machine.free_memory import free_bytes
from momentumnet.streams.blocks.converted import streams_of

if TYPE_CHECKING:
    from momentumnet.cli.report import Report

EXAMPLES = 8
TEXT = CommandText(
    "convert a classifier and fine-tune it",
    """\
Convert an image classifier into a Momentum ResNet, fine-tune it, and show accuracy, memory and step time beside the
unconverted network. The fine-tuned weights fit the unconverted network too. The classifier is torchvision's, timm's,
one of transformers, or what a function of yours returns.""",
    """\
examples:
  momentumnet finetune                                     ResNet-18 on the digits of scikit-learn
  momentumnet finetune resnet50 --data cifar10 --others checkpoint
  momentumnet finetune --data photos --weights DEFAULT     photos/train/CLASS/*.jpg and photos/val/CLASS/*.jpg
  momentumnet finetune timm:vit_tiny_patch16_224 --data photos
  momentumnet finetune mine:network                        mine.py: def network(): return an nn.Module for images
  momentumnet finetune --budget 2GiB                       what each block keeps is chosen so that a step fits
  momentumnet finetune --compare                           fine-tune the unconverted network as well
  momentumnet finetune --optimizer sam                     step with the gradient at the worst point nearby
  momentumnet finetune --data photos --validation 0.2 --augment randaugment --precision bf16 --accumulate 2
  momentumnet finetune --freeze backbone --schedule cosine --warmup 1 --patience 3 --save best
  momentumnet finetune --resume                            go on after an interruption, or to more --epochs
  torchrun --nproc-per-node 2 -m momentumnet finetune      in two processes, each with its part of every batch

Weights and data that are named and cannot be had end it with exit status 2. A checkpoint is written after every
epoch, to runs/MODEL-DATA unless --output names another folder; a second run goes to runs/MODEL-DATA-2, and --resume
goes on with the last of them. evaluate, predict and export take that folder.""",
)


def add_parser(commands: Any) -> None:
    """Adds the command to the program's subcommands."""
    parser = add_command(commands, "finetune", TEXT, run, conversion(others="checkpoint"))
    training_options.add_network_and_data(parser.add_argument_group("network and data"))
    training_options.add_training(parser.add_argument_group("training"))
    training_options.add_optimizer(parser.add_argument_group("optimizer"))
    training_options.add_engine(parser.add_argument_group("engine"))
    training_options.add_run(parser.add_argument_group("run"))


def run(options: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        UsageError: Weights, images or a checkpoint cannot be used, or options do not fit together.
        ConversionError: The model has no stream that can be carried.
    """
    from momentumnet.cli.report import Report

    importlib.import_module("momentumnet.finetuning.weights_file")  # a package that is missing is told before any work
    if options.tensorboard:
        importlib.import_module("torch.utils.tensorboard")
    recipe = training_options.recipe(options)
    if arguments.is_planned(options) and (options.others != "checkpoint" or options.backward != "auto"):
        raise UsageError("--budget and --spare choose for each block and module; leave out --others and --backward")
    if options.offload and not arguments.is_planned(options):
        raise UsageError("--offload is one of the choices of --budget and --spare; add for example --budget 4GiB")
    name = f"{model_sources.in_file_names(options.model)}-{Path(options.data).resolve().name}"
    with processes.joined(options.device) as (together, options.device), ExitStack() as stack:
        report, folder = Report.of(options, silent=not together.is_first), None
        if together.is_first:
            opened = run_folder.opened(options.output, name, resume=options.resume, overwrite=options.overwrite)
            folder = stack.enter_context(opened)
        _run(options, recipe, report, together.from_first(folder), together)


def _run(
    options: argparse.Namespace, recipe: Recipe, report: Report, folder: Path, together: processes.Processes
) -> None:
    from momentumnet.cli import comparison_table

    comparison = _compared(options, recipe, report, folder, together)
    trained = (MOMENTUM, UNCONVERTED) if options.compare else (MOMENTUM,)
    try:
        with _compiled(comparison.networks) if options.compile else nullcontext():
            outcomes = comparison.run(trained=trained, resume=options.resume)
    except KeyboardInterrupt:
        place = "in the place of --overwrite " if options.overwrite else ""
        report.remark(
            f"Interrupted: the same command with --resume {place}goes on after the last finished epoch, in {folder}."
        )
        raise
    if together.is_first:
        comparison_table.show(comparison, outcomes, report)


def _compared(
    options: argparse.Namespace, recipe: Recipe, report: Report, folder: Path, together: processes.Processes
) -> Comparison:
    """What is trained and measured; a run that is to be overwritten is gone as soon as there is such a thing."""
    device = _device(options)
    torch.manual_seed(options.seed)
    with together.one_first():
        images, model, weights = _loaded(options, report)
        recipe = dataclasses.replace(recipe, batch_size=_batch_size(recipe.batch_size, len(images.train), together))
    _tell(options, report, images, weights, device)
    if together.count > 1:
        report.remark(f"{together.count} processes, {recipe.batch_size // together.count} images of a batch in each")
    _check_room(images.image_size, recipe.batch_size)
    if options.freeze is not None:
        report.remark(f"{len(freeze(model, options.freeze))} modules with parameters do not learn")
    model.to(device)
    if options.resume and (folder / CONFIG).is_file():
        options = _going_on(options, Trained.read(folder), images)
    converted = _converted(model, images, options, recipe, device, together)
    if options.overwrite and together.is_first:  # not before: a mistyped option would have cost the run that is there
        run_folder.clear(folder)
    gamma = next((stream.gamma for stream in streams_of(converted)), Fraction(0))
    return Comparison(
        networks={MOMENTUM: converted, UNCONVERTED: model},
        images=images,
        device=device,
        recipe=recipe,
        output=folder,
        settings=training_options.settings(options, images, weights, recipe, gamma),
        narrator=report,
        save=options.save,
        processes=together,
        options=training_options.recorded(options),
        tensorboard=options.tensorboard,
    )


def _device(options: argparse.Namespace) -> torch.device:
    device = chosen_device(options)
    if options.offload and device.type != "cuda":
        raise UsageError(
            f"--offload moves activations from a GPU to host memory, and the device is {device}; leave it out"
        )
    return device


def _tell(options: argparse.Namespace, report: Report, images: ImageData, weights: str, device: torch.device) -> None:
    report.remark(
        f"{options.model} (weights: {weights}) on {images.name}: {len(images.train)} training and "
        f"{len(images.validation)} validation images of {images.image_size} x {images.image_size}, "
        f"{images.classes} classes, {device}"
    )


def _loaded(options: argparse.Namespace, report: Report) -> tuple[ImageData, nn.Module, str]:
    """The images, the network, and where its weights came from."""
    image_size = options.image_size or max(data.default_size(options.data), model_sources.smallest_size(options.model))
    reading = training_options.reading(options)
    images = data.load_images(options.data, image_size=image_size, say=report.line, reading=reading)
    model, weights = model_sources.build_classifier(
        options.model, weights=options.weights, classes=images.classes, image_size=image_size, say=report.line
    )
    return images, model, weights


def _batch_size(asked: int, images: int, together: processes.Processes) -> int:
    """Images of a forward pass in all processes together.

    Raises:
        UsageError: They cannot be shared out.
    """
    if asked % together.count:
        raise UsageError(f"--batch-size {asked} is that of all processes together: take a multiple of {together.count}")
    return min(asked, images // together.count * together.count)


def _converted(
    model: nn.Module,
    images: ImageData,
    options: argparse.Namespace,
    recipe: Recipe,
    device: torch.device,
    together: processes.Processes,
) -> nn.Module:
    """The network, converted in all processes as the first one has it: choices for a budget go by measured times."""
    own = dataclasses.replace(recipe, batch_size=recipe.batch_size // together.count)
    if not arguments.is_planned(options):
        return _convert(model, images, options, own, device)
    network = _convert(model, images, options, own, device) if together.is_first else None
    description = together.from_first(None if network is None else describe(network))
    return convert(model, like=description) if network is None else network


def _going_on(options: argparse.Namespace, earlier: Trained, images: ImageData) -> argparse.Namespace:
    """The options of a run that is resumed: its network keeps its function, and its outputs their classes.

    Raises:
        UsageError: The images have other classes now, which the outputs would be taken for.
    """
    if images.class_names != earlier.classes:
        raise UsageError(
            f"{images.name} has other classes than {earlier.folder} was trained on: {listed(list(earlier.classes))} "
            f"there, {listed(list(images.class_names))} now; put the folder back as it was, or start without --resume"
        )
    gamma = Fraction(earlier.settings["gamma"]) if options.gamma is None else options.gamma
    return argparse.Namespace(**{**vars(options), "gamma": gamma})


def _check_room(image_size: int, batch_size: int) -> None:
    """Looks before images are resized: systems that promise more memory than they have would kill the process then.

    Raises:
        MachineError: A batch of images does not fit into the memory that is free.
    """
    wanted, free = 3 * 4 * image_size**2 * batch_size, free_bytes(torch.device("cpu"))
    if wanted > free:
        raise MachineError(
            f"out of memory: {batch_size} images of {image_size} x {image_size} take {format_bytes(wanted)}, and "
            f"{format_bytes(free)} are free. Take a smaller --image-size or --batch-size"
        )


def _compiled(networks: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
    return compiling.compiled(list(networks.values()), compiling.block_names(networks[MOMENTUM]))


def _convert(
    model: nn.Module, images: ImageData, options: argparse.Namespace, recipe: Recipe, device: torch.device
) -> nn.Module:
    batch_size, dtype = recipe.batch_size, PRECISIONS[recipe.precision]
    few = [images.train[index][0] for index in range(min(EXAMPLES, len(images.train)))]
    models.check_takes(options.model, model, torch.stack(few[:2]).to(device))
    if arguments.is_planned(options):  # measured as the steps will be, also where the network came in eval mode
        begin_training(model)
        examples = torch.stack([images.train[index][0] for index in range(batch_size)])
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            budgeted = {"gamma": options.gamma, "arithmetic": options.arithmetic, "budget": options.budget}
            budgeted["gradients"] = PRESENT if recipe.accumulate > 1 else ANEW
            return convert(model, examples.to(device), spare=options.spare, offload=options.offload, **budgeted)
    examples = torch.stack(few)
    return convert(
        model,
        examples.to(device),
        gamma=options.gamma,
        others=options.others,
        backward=options.backward,
        arithmetic=options.arithmetic,
    )
