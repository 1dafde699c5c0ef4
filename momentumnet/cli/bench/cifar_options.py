"""Options of the benchmarks that train CIFAR's networks: networks, images, epochs and seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from momentumnet.cli import arguments
from momentumnet.cli.bench import cifar_networks
from momentumnet.cli.bench.cifar_images import ImageData, load_cifar10, load_digits, load_npz
from momentumnet.cli.bench.cifar_training import CLIP, MOMENTUM, WEIGHT_DECAY
from momentumnet.cli.errors import CommandError

EPOCHS, SEEDS, QUICK_IMAGES = 10, 3, 256


def add_options(command: argparse.ArgumentParser, *, models: str, methods: Collection[str]) -> None:
    """Adds the options; ``models`` is what the command trains by default, ``methods`` what it compares."""
    command.add_argument("--models", type=_models, metavar="NAME,...", help=f"(default: {models})")
    command.add_argument(
        "--methods", type=_among(methods), default=",".join(methods), metavar="NAME,...", help="(default: %(default)s)"
    )
    command.add_argument(
        "--data",
        type=_data,
        default="digits",
        metavar="digits|cifar10|FILE.npz",
        help="a file holds x_train, y_train, x_test, y_test, images uint8 (N, 32, 32, 3) (default: %(default)s)",
    )
    for name, meaning in (("train", "training"), ("test", "test")):
        command.add_argument(
            f"--{name}-samples",
            type=arguments.positive,
            metavar="N",
            help=f"number of {meaning} images, drawn by chance, always the same ones (default: all)",
        )
    command.add_argument("--epochs", type=arguments.positive, metavar="N", help=f"(default: {EPOCHS}; with --quick 1)")
    command.add_argument(
        "--seeds", type=arguments.positive, metavar="N", help=f"seeds 0, ..., N - 1 (default: {SEEDS}; with --quick 1)"
    )
    command.add_argument(
        "--batch-size", type=arguments.positive, default=128, metavar="N", help="(default: %(default)s)"
    )
    command.add_argument(
        "--lr", type=arguments.learning_rate, default=0.1, metavar="R", help="largest one (default: %(default)s)"
    )
    command.add_argument("--restart", action="store_true", help="forget the rows that --output holds")


def _models(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        try:
            cifar_networks.parse(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return list(dict.fromkeys(names))


def _among(known: Collection[str]) -> Callable[[str], list[str]]:
    def methods(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not a method; there are {', '.join(known)}")
        return list(dict.fromkeys(names))

    return methods


def _data(text: str) -> str:
    if text not in ("digits", "cifar10") and not (text.endswith(".npz") and Path(text).is_file()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither digits, cifar10 nor a .npz file that exists")
    return text


def chosen_models(options: argparse.Namespace, models: str, quick: str) -> list[str]:
    """The networks' names: those given, or else the default's or ``quick``, separated by commas."""
    return options.models or _models(quick if options.quick else models)


def chosen_seeds(options: argparse.Namespace) -> range:
    """The seeds."""
    return range(options.seeds or (1 if options.quick else SEEDS))


def chosen_epochs(options: argparse.Namespace) -> int:
    """The number of epochs."""
    return options.epochs or (1 if options.quick else EPOCHS)


def chosen_images(options: argparse.Namespace) -> ImageData:
    """The images that the options name.

    Raises:
        CommandError: They cannot be read, or are less than a batch.
    """
    try:
        if options.data == "digits":
            data = load_digits()
        else:
            data = load_cifar10() if options.data == "cifar10" else load_npz(Path(options.data))
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    few = QUICK_IMAGES if options.quick else None
    data = data.part(train=options.train_samples or few, test=options.test_samples or few)
    if len(data.x_train) < options.batch_size:
        raise CommandError(f"{len(data.x_train)} training images are less than one batch of {options.batch_size}")
    return data


def settings(data: ImageData, recipe: object) -> dict[str, Any]:
    """What makes the rows comparable: images, the recipe's attributes, and what all trainings have in common."""
    return {
        "data": data.name,
        "images": list(data.x_train.shape[1:]),
        "train_samples": len(data.x_train),
        "test_samples": len(data.x_test),
        "augmented": data.augmented,
        **vars(recipe),
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "clip": CLIP,
    }


def described(settings: dict[str, Any]) -> str:
    """The `settings` in words, for below a table."""
    return (
        f"{settings['data']}, {settings['train_samples']} training and {settings['test_samples']} test images of "
        f"{settings['images'][1]} x {settings['images'][2]}; epochs: {settings['epochs']}; SGD, batch "
        f"{settings['batch_size']}, momentum {settings['momentum']}, learning rate {settings['lr']} falling as a "
        f"cosine, weight decay {settings['weight_decay']:g}; without batch normalisation gradients are clipped at norm "
        f"{settings['clip']:g} and biases learn at a tenth of the rate."
    )
