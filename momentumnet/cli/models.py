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

from momentumnet.bench import downloads
from momentumnet.checkpoint_file import UNREADABLE
from momentumnet.cli.errors import CommandError

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
    tensors = tuple(torch.rand(shape) for shape in shapes)
    if name in list_models(module=torchvision.models.detection):
        return ([image for batch in tensors for image in batch],)  # detection models take a list of images
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
    name: str, *, weights: str, classes: int, image_size: int, say: Callable[[str], None]
) -> tuple[nn.Module, str]:
    """An image classification model for ``classes`` classes.

    Args:
        name: Torchvision image classification model.
        weights: ``none`` (random), the path of a state dict, or else the name of torchvision weights such as
            ``DEFAULT``. Without network these fall back to random weights.
        classes: Number of classes; a head of another size is replaced by a new one.
        image_size: Side of the images.
        say: Takes one line to tell the user.

    Returns:
        The model and where its weights came from: ``weights``, or ``none`` after a fall-back.

    Raises:
        CommandError: No such weights, an unreadable file, or one that does not fit the model.
    """
    if weights == "none":
        return _sized(name, classes, image_size), weights
    if Path(weights).is_file():
        return _from_file(name, Path(weights), classes, image_size), weights
    model = _pretrained(name, weights, say)
    if model is None:
        return _sized(name, classes, image_size), "none"
    _replace_head(model, classes)
    return model, weights


def _sized(name: str, classes: int, image_size: int) -> nn.Module:
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    try:
        return get_model(name, weights=None, num_classes=classes, **options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise CommandError(f"{name} cannot be built for images of {image_size} x {image_size}: {error}") from error


def _pretrained(name: str, weights: str, say: Callable[[str], None]) -> nn.Module | None:
    try:
        entry: Any = get_model_weights(name)[weights]
    except KeyError:
        known = ", ".join(member.name for member in get_model_weights(name))
        raise CommandError(
            f"--weights {weights} is neither a file nor weights of {name}; there are none, DEFAULT, {known}"
        ) from None
    problem: object
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if not cached.is_file() and not downloads.reachable(entry.url):
        problem = "no network"
    else:
        try:
            with downloads.stall_timeout():
                return get_model(name, weights=entry)
        except (URLError, TimeoutError, ConnectionError) as error:
            problem = error
        except RuntimeError as error:
            if "hash" not in str(error):  # a download that was cut short
                raise
            problem = error
    say(f"weights: those of {name} could not be downloaded ({problem}); it starts from random weights")
    return None


def _from_file(name: str, path: Path, classes: int, image_size: int) -> nn.Module:
    state = _read_state(path)
    model = _sized(name, classes, image_size)
    head, _ = _head(model)
    trained = state.get(f"{head}.weight")
    if trained is not None and len(trained) != classes:
        model = _sized(name, len(trained), image_size)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CommandError(f"{path} does not hold weights of {name}: {error}") from error
    if trained is not None and len(trained) != classes:
        _replace_head(model, classes)
    return model


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CommandError(f"{path} is not a file of weights that torch.load reads: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CommandError(f"{path} does not hold a state dict (names and tensors)")
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _head(model: nn.Module) -> tuple[str, nn.Linear]:
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise CommandError(f"{type(model).__name__} has no linear layer whose outputs could be the classes")
    return linear[-1]


def _replace_head(model: nn.Module, classes: int) -> None:
    path, head = _head(model)
    parent, _, name = path.rpartition(".")
    new = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    setattr(model.get_submodule(parent), name, new)
