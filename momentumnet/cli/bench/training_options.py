"""Options of the benchmarks that train CIFAR's networks: networks, images, epochs and seeds."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from momentumnet.bench.data.images import ImageData, load_cifar10, load_digits, load_npz
from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.reporting.seeds import Case
from momentumnet.cli import arguments
from momentumnet.cli.options import DEFAULT, add_count
from momentumnet.command_errors import UsageError

EPOCHS, SEEDS, QUICK_IMAGES = 10, 3, 256


def add_options(
    command: argparse.ArgumentParser,
    *,
    models: str,
    methods: Collection[str],
    usual: Collection[str] | None = None,
    parse: Callable[[str], object] = cifar_networks.parse,
    lr: float = 0.1,
    several_rates: bool = False,
) -> None:
    """Adds the options.

    Args:
        command: Gets them.
        models: What it trains by default.
        methods: What it compares.
        usual: Of the methods, those that it compares by default; None for all.
        parse: Raises ValueError where a name is no network's.
        lr: The largest learning rate by default.
        several_rates: Whether ``--lr`` takes more than one.
    """
    group = command.add_argument_group("networks and images")
    group.add_argument("--models", type=_models(parse), metavar="NAME,...", help=f"(default: {models})")
    group.add_argument(
        "--methods",
        type=_among(methods),
        default=",".join(usual or methods),
        metavar="NAME,...",
        help="(default: %(default)s)",
    )
    add_data(group)
    for name, meaning in (("train", "training"), ("test", "test")):
        group.add_argument(
            f"--{name}-samples",
            type=arguments.positive,
            metavar="N",
            help=f"number of {meaning} images, drawn by chance, always the same ones (default: all)",
        )
    group = command.add_argument_group("training")
    group.add_argument("--epochs", type=arguments.positive, metavar="N", help=f"(default: {EPOCHS}; with --quick 1)")
    group.add_argument(
        "--seeds", type=arguments.positive, metavar="N", help=f"seeds 0, ..., N - 1 (default: {SEEDS}; with --quick 1)"
    )
    add_count(group, "--batch-size", 128)
    rate, shape = (arguments.learning_rates, "R,...") if several_rates else (arguments.learning_rate, "R")
    group.add_argument("--lr", type=rate, default=str(lr), metavar=shape, help="largest one (default: %(default)s)")
    group.add_argument("--restart", action="store_true", help="forget the rows that --output holds")


def add_data(command: argparse._ActionsContainer) -> None:
    """Adds ``--data``; `load` reads what it names."""
    command.add_argument(
        "--data",
        type=_data,
        default="digits",
        metavar="digits|cifar10|FILE.npz",
        help="a file holds x_train, y_train, x_test, y_test, images uint8 (N, 32, 32, 3) (default: %(default)s)",
    )


def add_noise(command: argparse._ActionsContainer, default: str, *, several: bool = False) -> None:
    """Adds ``--noise``, which takes more than one share with ``several``."""
    share, shape = (arguments.percentages, "P,...") if several else (arguments.percentage, "P")
    meaning = f"percent of training labels that are wrong {DEFAULT}"
    command.add_argument("--noise", type=share, default=default, metavar=shape, help=meaning)


def add_init_steps(command: argparse._ActionsContainer, meaning: str) -> None:
    """Adds ``--init-steps``; `chosen_init_steps` has its value."""
    command.add_argument("--init-steps", type=arguments.positive, metavar="N", help=meaning)


def _models(parse: Callable[[str], object]) -> Callable[[str], list[str]]:
    def models(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            try:
                parse(name)
            except ValueError as error:
                raise argparse.ArgumentTypeError(str(error)) from None
        return list(dict.fromkeys(names))

    return models


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
    return options.models or (quick if options.quick else models).split(",")


def chosen_seeds(options: argparse.Namespace) -> range:
    """The seeds."""
    return range(options.seeds or (1 if options.quick else SEEDS))


def chosen_cases(options: argparse.Namespace, models: str, quick: str) -> list[Case]:
    """Each network with each method and each seed; ``models`` and ``quick`` as for `chosen_models`."""
    return [
        {"model": model, "method": method, "seed": seed}
        for model in chosen_models(options, models, quick)
        for method in options.methods
        for seed in chosen_seeds(options)
    ]


def chosen_recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The attributes that all recipes have."""
    epochs = options.epochs or (1 if options.quick else EPOCHS)
    return {"epochs": epochs, "batch_size": options.batch_size, "lr": options.lr}


def chosen_init_steps(options: argparse.Namespace) -> int | None:
    """Steps of initialisations that learn; None for those of their papers."""
    return options.init_steps or (2 if options.quick else None)


def chosen_images(options: argparse.Namespace) -> ImageData:
    """As many images as the options say of what ``--data`` names.

    Raises:
        UsageError: They cannot be read, or are less than a batch.
    """
    few = QUICK_IMAGES if options.quick else None
    data = load(options.data).part(train=options.train_samples or few, test=options.test_samples or few)
    if len(data.x_train) < options.batch_size:
        raise UsageError(f"{len(data.x_train)} training images are less than one batch of {options.batch_size}")
    return data


def load(source: str) -> ImageData:
    """The images that ``--data`` names.

    Raises:
        UsageError: They cannot be read.
    """
    try:
        if source == "digits":
            return load_digits()
        return load_cifar10() if source == "cifar10" else load_npz(Path(source))
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
