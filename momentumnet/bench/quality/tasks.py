"""What the networks are trained on: images, or text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from momentumnet.bench.data.images import ImageData
from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.networks.cifar_networks import NetworkName, parse_transformer
from momentumnet.bench.networks.language_models import CausalDecoder
from momentumnet.bench.quality.texts import HELD_OUT, TextData
from momentumnet.bench.trainings import recipe as shared
from momentumnet.bench.trainings.language_training import TextCourse
from momentumnet.bench.trainings.recipe import parameter_groups, sgd_options
from momentumnet.bench.trainings.training import Course, SeededTraining, TrainingCourse
from momentumnet.init import kaiming_

GPT_WIDTH = 256
ADAM_DECAY = 0.01


@dataclass(frozen=True)
class Recipe(shared.Recipe):
    """How the networks are trained; ``lr`` is that of ResNets.

    Attributes:
        adam_lr: Learning rate of transformers.
        finetune_epochs: Epochs of what begins with trained weights.
        finetune_scale: Their learning rate, of that of a training.
    """

    adam_lr: float
    finetune_epochs: int
    finetune_scale: float


class Task(Protocol):
    """Data, and networks for it."""

    def model(self, network: str, seed: int) -> nn.Module:
        """The network of this name with the seed's weights, on the device."""

    def course(self, seed: int) -> TrainingCourse[Any]:
        """A course that has not begun."""

    def scores(self, course: TrainingCourse[Any]) -> list[float]:
        """What a course of this task came to after each epoch."""


@dataclass(frozen=True)
class ImageTask:
    """Classes of images: CIFAR's ResNets and ViTs; scores are accuracies (%)."""

    data: ImageData
    recipe: Recipe
    device: torch.device

    def model(self, network: str, seed: int) -> nn.Module:
        """As `Task`; the weights of a ResNet are Kaiming's."""
        model = SeededTraining(network, seed, self.data, self.recipe, self.device).new_model()
        if cifar_networks.parse(network).family == "resnet":
            kaiming_(model)
        return model

    def course(self, seed: int) -> Course:
        """As `Task`."""
        return Course(self.data, seed, self.recipe.batch_size, self.device)

    def scores(self, course: TrainingCourse[Any]) -> list[float]:
        """As `Task`."""
        return course.accuracies if isinstance(course, Course) else []


@dataclass(frozen=True)
class TextTask:
    """The next character of a text: decoders; scores are losses on the text's end, in nats a character."""

    data: TextData
    recipe: Recipe
    device: torch.device

    def model(self, network: str, seed: int) -> nn.Module:
        """As `Task`."""
        name = parse_decoder(network)
        torch.manual_seed(seed)
        length = self.data.length
        decoder = CausalDecoder(
            depth=name.depth,
            width=name.width or GPT_WIDTH,
            length=length,
            vocabulary=len(self.data.characters),
            chunk=self.recipe.batch_size * (length - 1),  # a batch is one chunk, whose mean is that of all
        )
        return decoder.to(self.device)

    def course(self, seed: int) -> TextCourse:
        """As `Task`."""
        return TextCourse(self.data, seed, self.recipe.batch_size, self.device)

    def scores(self, course: TrainingCourse[Any]) -> list[float]:
        """As `Task`."""
        return course.validation_losses if isinstance(course, TextCourse) else []


def optimizer_of(model: nn.Module, recipe: Recipe, *, transformer: bool, scale: float) -> Optimizer:
    """SGD for ResNets, AdamW for transformers, at ``scale`` times the recipe's learning rate."""
    if transformer:
        return AdamW(model.parameters(), lr=scale * recipe.adam_lr, weight_decay=ADAM_DECAY)
    lr = scale * recipe.lr
    return SGD(parameter_groups(model, lr), **sgd_options(lr))


def parse_image_network(name: str) -> NetworkName:
    """What the name of a network for images says.

    Raises:
        ValueError: There is no such network, or it has no residual blocks.
    """
    found = cifar_networks.parse(name)
    if found.family not in ("resnet", "vit"):
        raise ValueError(f"{name} has no residual blocks; take resnetN, resnetN_bn, vitN or vitNxWIDTH")
    return found


def parse_decoder(name: str) -> NetworkName:
    """What the name of a network for text says.

    Raises:
        ValueError: There is no such network.
    """
    found = parse_transformer(name, "gpt", GPT_WIDTH)
    if found is None:
        raise ValueError(
            f"{name!r} is not a network for text; there are gptN with N blocks (gpt6, gpt12), and gptNxWIDTH with "
            f"another width than {GPT_WIDTH}"
        )
    return found


def parse(name: str) -> NetworkName:
    """What a network's name says, of either task.

    Raises:
        ValueError: There is no such network, or it has no residual blocks.
    """
    return parse_decoder(name) if name.startswith("gpt") else parse_image_network(name)


def text_settings(data: TextData, recipe: Recipe) -> dict[str, Any]:
    """What makes the rows of a text comparable."""
    digest = hashlib.sha256(torch.cat([data.train, data.test]).numpy().tobytes() + data.characters.encode())
    own = {name: value for name, value in vars(recipe).items() if name != "lr"}
    return {
        "data": data.name,
        "characters": len(data.train) + len(data.test),
        "different": len(data.characters),
        "held_out": HELD_OUT,
        "length": data.length,
        "sha256": digest.hexdigest()[:16],
        **own,
        "clip": shared.CLIP,
    }
