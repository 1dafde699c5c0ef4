"""Torchvision models by name: built for a number of classes, and example inputs that they accept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models

from momentumnet.bench.data import downloads
from momentumnet.command_errors import UsageError
from momentumnet.files.checkpoint_file import UNREADABLE
from momentumnet.finetuning import weight_faults
from momentumnet.out_of_memory import is_out_of_memory

VIDEO_FRAMES = 16
DEFAULT_SIZE = 224


def smallest_size(name: str) -> int:
    """The smallest image side that the torchvision model ``name`` is made for."""
    return int(max(_default_weights(name).meta["min_size"]))


def example_inputs(name: str, shapes: Sequence[tuple[int, ...]] | None, *, batch: int | None = None) -> tuple[Any, ...]:
    """Random positional arguments for the torchvision model ``name``.

    Args:
        name: Any torchvision model.
        shapes: Shapes of the input tensors, batch dimension included; None for what the model is made for.
        batch: Size of the batch dimension, where it is not that of the shapes.
    """
    if shapes is None:
        shapes = _default_shapes(name)
    if batch is not None:
        shapes = [(batch, *shape[1:]) for shape in shapes]
    taken: tuple[Any, ...] = as_taken(name, tuple(torch.rand(shape) for shape in shapes))
    return taken


def is_detection(name: str) -> bool:
    """Whether the torchvision model ``name`` takes a list of images, and targets in training."""
    return name in list_models(module=torchvision.models.detection)


def as_taken(name: str, tensors: Any) -> Any:
    """Positional arguments as the torchvision model ``name`` takes them: images in batches, or in a list."""
    if is_detection(name) and isinstance(tensors, tuple) and all(isinstance(images, Tensor) for images in tensors):
        return ([image for batch in tensors for image in batch],)
    return tensors


def _default_shapes(name: str) -> list[tuple[int, ...]]:
    weights = _default_weights(name)
    crop = getattr(weights.transforms(), "crop_size", None)
    size = int(crop[0]) if crop else DEFAULT_SIZE
    if name in list_models(module=torchvision.models.video):
        return [(1, 3, VIDEO_FRAMES, size, size)]
    if name in list_models(module=torchvision.models.optical_flow):
        return [(1, 3, size, size)] * 2
    return [(1, 3, size, size)]


def _default_weights(name: str) -> Any:
    return get_model_weights(name).DEFAULT


def untrained(name: str) -> nn.Module:
    """The torchvision model ``name`` with random weights, nothing downloaded."""
    families = (torchvision.models.detection, torchvision.models.segmentation)
    with_backbone = any(name in list_models(module=family) for family in families)
    options = {"weights_backbone": None} if with_backbone else {}
    return get_model(name, weights=None, **options)


def build_classifier(
    name: str, *, weights: str | None, classes: int, image_size: int, say: Callable[[str], None]
) -> tuple[nn.Module, str]:
    """An image classification model for ``classes`` classes.

    Args:
        name: Torchvision image classification model.
        weights: ``none`` (random), the path of a state dict, or else the name of torchvision weights such as
            ``DEFAULT``; None, for a user who has named none, is ``DEFAULT``, or without network random ones.
        classes: Number of classes; a head of another size is replaced by a new one.
        image_size: Side of the images.
        say: Takes one line to tell the user.

    Returns:
        The model and where its weights came from: ``weights``, or ``none`` after a fall-back.

    Raises:
        UsageError: No such weights, no network to fetch them from, an unreadable file, or one that does not fit the
            model.
    """
    if weights == "none":
        return sized(name, classes, image_size), weights
    if weights is not None and Path(weights).is_file():
        return from_file(Path(weights), name, classes, lambda count: sized(name, count, image_size)), weights
    model, problem = _pretrained(name, weights or "DEFAULT")
    if model is not None:
        fit_head(model, classes, anew=True)
        return model, weights or "DEFAULT"
    if weights is not None:
        raise UsageError(
            f"--weights {weights} of {name} could not be downloaded ({problem}): name a file, or start from "
            "random ones with --weights none"
        )
    say(f"weights: those of {name} could not be downloaded ({problem}); it starts from random weights")
    return sized(name, classes, image_size), "none"


def sized(name: str, classes: int, image_size: int) -> nn.Module:
    """A torchvision classifier with random weights, for a number of classes and images of a size.

    Raises:
        UsageError: There is none for that size.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    try:
        return get_model(name, weights=None, num_classes=classes, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UsageError(f"{name} cannot be built for images of {image_size} x {image_size}: {error}") from error


def _pretrained(name: str, weights: str) -> tuple[nn.Module | None, object]:
    """The model, or why there is none."""
    try:
        entry: Any = get_model_weights(name)[weights]
    except KeyError:
        known = ", ".join(member.name for member in get_model_weights(name))
        raise UsageError(
            f"--weights {weights} is neither a file nor weights of {name}; there are none, DEFAULT, {known}"
        ) from None
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if not cached.is_file() and not downloads.reachable(entry.url):
        return None, "no network"
    try:
        with downloads.stall_timeout():
            return get_model(name, weights=entry), None
    except (URLError, TimeoutError, ConnectionError) as error:
        return None, error
    except RuntimeError as error:
        if "hash" not in str(error):  # a download that was cut short
            raise
        return None, error


def from_file(path: Path, name: str, classes: int, build: Callable[[int], nn.Module]) -> nn.Module:
    """A classifier with the weights of a state dict; a head for another number of classes is replaced by a new one.

    Args:
        path: The file.
        name: Of the network, for messages.
        classes: Number of classes.
        build: Makes the network for a number of classes.

    Raises:
        UsageError: The file cannot be read, or does not fit.
    """
    state = _read_state(path)
    model = build(classes)
    place, _ = head(model)
    trained = state.get(f"{place}.weight")
    if trained is not None and len(trained) != classes:
        model = build(len(trained))
    if faults := weight_faults.faults(model, state):
        raise UsageError(f"{path} does not hold weights of {name}: {faults}{weight_faults.fitting(state, name)}")
    model.load_state_dict(state)
    fit_head(model, classes)
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from momentumnet.finetuning.weights_file import load_foreign

        return load_foreign(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        # What torch says there is advice to load the file without care, which would run what it holds.
        raise UsageError(
            f"{path} is not a file of weights: it is damaged, or holds something else than tensors, which is not "
            f"loaded because that could run a program ({type(error).__name__}); give a state dict that torch.save wrote"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UsageError(f"{path} does not hold a state dict (names and tensors)")
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def head(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, whose outputs are the classes, and its name."""
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError(f"{type(model).__name__} has no linear layer whose outputs could be the classes")
    return linear[-1]


def check_takes(name: str, model: nn.Module, images: Tensor) -> None:
    """Runs a stock network on a few images, which are on its device.

    Raises:
        UsageError: It is not made for images of that size.
    """
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        size = " x ".join(map(str, images.shape[2:]))
        raise UsageError(f"{name} does not take images of {size}: {str(error).splitlines()[0]}") from error
    finally:
        model.train(was_training)


def fit_head(model: nn.Module, classes: int, *, anew: bool = False) -> None:
    """Puts a new head in place of one for another number of classes, or, with ``anew``, of any."""
    path, old = head(model)
    if old.out_features == classes and not anew:
        return
    parent, _, name = path.rpartition(".")
    new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    setattr(model.get_submodule(parent), name, new)
