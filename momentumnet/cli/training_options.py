"""The options of a training, and the recipe that they make."""

from __future__ import annotations

import argparse
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torchvision.models import list_models

from momentumnet.cli import arguments, completion, config_file
from momentumnet.cli.options import add_choice, add_count, add_device, add_skip_broken
from momentumnet.command_errors import UsageError
from momentumnet.finetuning import model_sources
from momentumnet.finetuning.data import AUGMENTATIONS, ImageData, Reading
from momentumnet.finetuning.named_data import NAMED
from momentumnet.finetuning.recipe import PRECISIONS, Recipe

RHO, ADAPTIVE_RHO = 0.05, 0.5  # Foret et al. and Kwon et al., on CIFAR-10


def add_network_and_data(group: Any) -> None:
    """Adds what is trained, and on what."""
    model = group.add_argument(
        "--model",
        type=arguments.classifier,
        default="resnet18",
        metavar="MODEL",
        help=f"{model_sources.MEANING}; of images, all of them; may stand alone, without '--model' (default: "
        "%(default)s)",
    )
    completion.offer(model, partial(list_models, module=torchvision.models))
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
        metavar="NAME|FOLDER",
        help=f"digits, {', '.join(NAMED)}, or a folder that holds train/CLASS and val/CLASS (default: %(default)s)",
    )
    group.add_argument(
        "--validation",
        type=arguments.share,
        metavar="S",
        help="share of a folder's images, e.g. 0.2, that is held out where it has no val; it holds CLASS then",
    )
    group.add_argument(
        "--augment",
        choices=list(AUGMENTATIONS),
        help="changes to training images by chance (default: flip; of digits and letters none)",
    )
    add_skip_broken(group)
    group.add_argument("--image-size", type=arguments.positive, metavar="N", help="side that images are brought to")
    group.add_argument(
        "--workers", type=arguments.whole, metavar="N", help="processes that read images (default: 2; for digits 0)"
    )


def add_training(group: Any) -> None:
    """Adds how long and how fast to train."""
    add_count(group, "--epochs", 3)
    add_count(group, "--batch-size", 64, "images of a forward pass")
    add_count(group, "--accumulate", 1, "batches whose gradients make a step")
    group.add_argument(
        "--lr", type=arguments.learning_rate, default=1e-3, metavar="R", help="largest learning rate (default: 0.001)"
    )
    add_choice(group, "--schedule", ("onecycle", "cosine", "constant"), "the learning rate over time")
    group.add_argument(
        "--warmup",
        type=arguments.radius,
        default=0.0,
        metavar="E",
        help="epochs over which the learning rate rises, of cosine and constant (default: %(default)s)",
    )
    add_choice(
        group, "--precision", list(PRECISIONS), "of activations: bf16 and fp16 by autocast, fp16 with a scaled loss"
    )
    group.add_argument(
        "--label-smoothing",
        type=arguments.share_or_none,
        default=0.0,
        metavar="S",
        help="share of each label that is spread over all classes (default: %(default)s)",
    )
    group.add_argument(
        "--freeze",
        type=arguments.frozen,
        metavar="backbone|N",
        help="do not train all but the last linear layer, or the first N modules (default: train all)",
    )
    group.add_argument(
        "--patience", type=arguments.positive, metavar="N", help="end after N epochs without a better accuracy"
    )
    group.add_argument("--seed", type=arguments.seed, default=0, metavar="N", help="(default: %(default)s)")


def add_optimizer(group: Any) -> None:
    """Adds by which gradients to train."""
    meaning = (
        "AdamW, SGD with momentum, or sharpness-aware minimisation around AdamW (asam: adaptive): two passes a step"
    )
    add_choice(group, "--optimizer", ("adamw", "sgd", "sam", "asam"), meaning)
    group.add_argument(
        "--weight-decay", type=arguments.radius, default=0.05, metavar="R", help="(default: %(default)s)"
    )
    group.add_argument(
        "--rho",
        type=arguments.radius,
        metavar="R",
        help=f"radius of sam (default: {RHO}; of asam {ADAPTIVE_RHO})",
    )
    group.add_argument("--adaptive", action="store_true", help="with sam: the same as asam")


def add_engine(group: Any) -> None:
    """Adds how activations come to backward."""
    meaning = (
        "memory that a training step may take, e.g. 2GiB, 'device' for what is free there, or 'least': for each block "
        "and module is chosen what takes the least time in it, in place of --others and --backward"
    )
    group.add_argument("--budget", type=arguments.budget, metavar="SIZE", help=meaning)
    group.add_argument(
        "--offload",
        action="store_true",
        help="within --budget or --spare, on a GPU: activations may go to host memory, too, where that takes less time "
        "than to compute them again (not timed on a GPU yet)",
    )
    add_choice(
        group, "--backward", ("auto", "reversible", "checkpointed", "stored"), "how activations come to backward"
    )
    add_choice(group, "--arithmetic", ("exact", "float"), "integers that invert bit for bit, or plain floats")
    group.add_argument("--compile", action="store_true", help="compile each block by torch.compile")
    add_device(group)


def add_run(group: Any) -> None:
    """Adds what comes of the training, where, and whether it goes on with what is there."""
    group.add_argument("--compare", action="store_true", help="fine-tune the unconverted network too")
    group.add_argument("--output", type=Path, metavar="DIR", help="folder for checkpoints, weights and report.json")
    group.add_argument(
        config_file.FLAG,
        metavar="FILE.toml",
        help="options from a file, e.g. batch-size = 32; those of the command line win",
    )
    add_choice(group, "--save", ("last", "best", "both"), "weights to keep: of the last epoch, or of the best accuracy")
    group.add_argument("--tensorboard", action="store_true", help="write the epochs to OUTPUT/tensorboard, too")
    again = group.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on after the last finished epoch in --output")
    again.add_argument("--overwrite", action="store_true", help="replace the run that is in --output")


def recipe(options: argparse.Namespace) -> Recipe:
    """What the options say; `fitted` has it for the images.

    Raises:
        UsageError: They do not fit together.
    """
    sharpness = options.optimizer in ("sam", "asam")
    adaptive = options.optimizer == "asam" or options.adaptive
    for name, given in (("--rho", options.rho is not None), ("--adaptive", options.adaptive)):
        if given and not sharpness:
            raise UsageError(
                f"{name} is an option of sam, and the optimizer is {options.optimizer}: add --optimizer sam"
            )
    if sharpness and options.precision == "fp16":
        raise UsageError("--precision fp16 scales the loss, which the two passes of sam do not allow: take bf16")
    if options.warmup and options.schedule == "onecycle":
        raise UsageError("--schedule onecycle has a warmup of its own: leave out --warmup, or take --schedule cosine")
    if options.warmup > options.epochs:
        raise UsageError(
            f"--warmup {options.warmup:g} is longer than --epochs {options.epochs}: the learning rate would never come "
            f"to --lr {options.lr:g}"
        )
    default = ADAPTIVE_RHO if adaptive else RHO
    return Recipe(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=options.seed,
        rho=(default if options.rho is None else options.rho) if sharpness else None,
        adaptive=adaptive,
        base="sgd" if options.optimizer == "sgd" else "adamw",
        weight_decay=options.weight_decay,
        schedule=options.schedule,
        warmup=options.warmup,
        precision=options.precision,
        accumulate=options.accumulate,
        label_smoothing=options.label_smoothing,
        patience=options.patience,
    )


def reading(options: argparse.Namespace) -> Reading:
    """How the options say that images are read."""
    return Reading(options.augment, options.workers, options.validation, options.skip_broken)


def settings(
    options: argparse.Namespace, images: ImageData, weights: str, recipe: Recipe, gamma: Fraction
) -> dict[str, object]:
    """What makes the run the one that it is, as plain values."""
    return {
        "model": options.model,
        "weights": weights,
        "data": images.name,
        "image_size": images.image_size,
        "gamma": str(gamma),
        "others": options.others,
        "spare": options.spare,
        "budget": options.budget,
        **({"offload": True} if options.offload else {}),
        "backward": options.backward,
        "arithmetic": options.arithmetic,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "lr": recipe.lr,
        "seed": recipe.seed,
        "optimizer": options.optimizer,
        "rho": recipe.rho,
        "adaptive": recipe.adaptive,
        "weight_decay": recipe.weight_decay,
        "schedule": recipe.schedule,
        "warmup": recipe.warmup,
        "precision": recipe.precision,
        "accumulate": recipe.accumulate,
        "label_smoothing": recipe.label_smoothing,
        "freeze": options.freeze,
        "patience": recipe.patience,
        "save": options.save,
        "augment": options.augment,
        "workers": options.workers,
        "validation": options.validation,
        **({"held_out": images.held_out} if images.held_out else {}),
        "skip_broken": options.skip_broken,
        "compile": options.compile,
    }


def recorded(options: argparse.Namespace) -> dict[str, object]:
    """All options as plain values, those that do not change what is trained among them."""
    plain = (str, int, float, bool, type(None))
    return {
        name: value if isinstance(value, plain) else str(value)
        for name, value in sorted(vars(options).items())
        if name != "run"  # the command itself
    }
