"""What ``bench gamma-schedule`` fine-tunes: CIFAR's ResNets on images, decoders on a text; each pretrained before."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from momentumnet.bench.data.byte_windows import VOCABULARY, ByteWindows
from momentumnet.bench.data.images import ImageData
from momentumnet.bench.networks import cifar_networks
from momentumnet.bench.networks.language_models import CausalDecoder
from momentumnet.bench.trainings import recipe as shared
from momentumnet.bench.trainings.language_training import TextCourse
from momentumnet.bench.trainings.recipe import parameter_groups, sgd_options
from momentumnet.bench.trainings.training import Course, TrainingCourse

WIDTH = 64  # of a decoder
SHALLOWEST = 14  # ResNet of which a stage has two blocks that keep the shape
EXAMPLES = 8  # which a conversion looks at
NAMES = "resnetN_bn with N = 6 n + 2 from 14 on (resnet20_bn, resnet56_bn, ...) and decoderN with N layers, from 2 on"

AnyCourse = TypeVar("AnyCourse", bound=TrainingCourse[Any])


@dataclass(frozen=True)
class Recipe(shared.Recipe):
    """How the networks are trained; ``lr`` is that of the ResNets.

    Attributes:
        text_lr: Learning rate of AdamW for the decoders.
        pretraining_epochs: Epochs of the training before.
    """

    text_lr: float
    pretraining_epochs: int


@dataclass
class Task(ABC, Generic[AnyCourse]):
    """A network that was trained on something, and is to be trained on something else.

    Attributes:
        network: Its name.
        recipe: How it is trained.
        device: Where.
    """

    network: str
    recipe: Recipe
    device: torch.device
    _pretrained: dict[int, nn.Module] = field(default_factory=dict, init=False)

    @property
    @abstractmethod
    def example(self) -> Tensor:
        """What a conversion looks at."""

    @property
    @abstractmethod
    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step that is measured."""

    @abstractmethod
    def course(self, seed: int) -> AnyCourse:
        """The course of a fine-tuning, which has not begun."""

    @abstractmethod
    def optimizer(self, model: nn.Module) -> Optimizer:
        """What trains the network."""

    @abstractmethod
    def scores(self, course: AnyCourse) -> list[float]:
        """What the epochs came to."""

    @abstractmethod
    def _new(self) -> tuple[nn.Module, AnyCourse]:
        """The network with random weights, and the course of its pretraining."""

    @abstractmethod
    def _prepare(self, model: nn.Module) -> None:
        """Make a pretrained network one for what it is fine-tuned on."""

    def is_pretrained(self, seed: int) -> bool:
        """Whether `pretrained` has this network already."""
        return seed in self._pretrained

    def pretrained(self, seed: int, advance: Callable[[], object]) -> nn.Module:
        """The network of a seed, trained; not to be changed.

        Args:
            seed: Decides weights, order of the examples and new parts.
            advance: Called after each epoch of the pretraining, if there is one.
        """
        if not self.is_pretrained(seed):
            torch.manual_seed(seed)
            model, course = self._new()
            course = dataclasses.replace(course, seed=seed)
            self.train(model, course, self.recipe.pretraining_epochs, advance)
            torch.manual_seed(seed)
            self._prepare(model)
            self._pretrained[seed] = model
        return self._pretrained[seed]

    def train(
        self,
        model: nn.Module,
        course: AnyCourse,
        epochs: int,
        advance: Callable[[], object],
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        """Trains with the learning rate falling as a cosine.

        Raises:
            DivergedError: A loss is not finite.
        """
        optimizer = self.optimizer(model)
        scheduler = CosineAnnealingLR(optimizer, epochs * course.steps_per_epoch)
        course.run(model, optimizer, scheduler, epochs, advance, on_step=on_step)


@dataclass
class ImageTask(Task[Course]):
    """A ResNet that was trained on the first half of the classes, and gets a new classifier for all of them.

    Attributes:
        data: All images.
    """

    data: ImageData

    @property
    def example(self) -> Tensor:
        return self.data.examples(EXAMPLES).to(self.device)

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        size = self.recipe.batch_size
        return self.data.examples(size).to(self.device), self.data.y_train[:size].to(self.device)

    def course(self, seed: int) -> Course:
        return Course(self.data, seed, self.recipe.batch_size, self.device)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return SGD(parameter_groups(model, self.recipe.lr), **sgd_options(self.recipe.lr))

    def scores(self, course: Course) -> list[float]:
        return course.accuracies

    def _new(self) -> tuple[nn.Module, Course]:
        half = first_half(self.data)
        model = cifar_networks.build(self.network, half.classes, side=half.side).to(self.device)
        return model, Course(half, 0, self.recipe.batch_size, self.device)

    def _prepare(self, model: nn.Module) -> None:
        features = max(cifar_networks.STAGES.values())
        model.add_module("linear", nn.Linear(features, self.data.classes, device=self.device))


@dataclass
class TextTask(Task[TextCourse]):
    """A decoder that was trained on one text, and goes on with another one.

    Attributes:
        before: The text that it is pretrained on.
        data: The other one.
    """

    before: ByteWindows
    data: ByteWindows

    @property
    def example(self) -> Tensor:
        return self.data.x_train[:EXAMPLES].long().to(self.device)

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        tokens = self.data.x_train[: self.recipe.batch_size].long().to(self.device)
        return tokens, tokens

    def course(self, seed: int) -> TextCourse:
        return TextCourse(self.data, seed, self.recipe.batch_size, self.device)

    def optimizer(self, model: nn.Module) -> Optimizer:
        return AdamW(model.parameters(), self.recipe.text_lr)

    def scores(self, course: TextCourse) -> list[float]:
        return course.validation_losses

    def _new(self) -> tuple[nn.Module, TextCourse]:
        length = self.before.x_train.shape[1]
        # One chunk a batch: the mean of the chunks is the mean of the predictions then.
        chunk = self.recipe.batch_size * (length - 1)
        model = CausalDecoder(
            depth=layers(self.network), width=WIDTH, length=length, vocabulary=VOCABULARY, chunk=chunk
        )
        return model.to(self.device), TextCourse(self.before, 0, self.recipe.batch_size, self.device)

    def _prepare(self, model: nn.Module) -> None:
        """Bytes are bytes: nothing is new."""


def first_half(data: ImageData) -> ImageData:
    """The images of the first half of the classes alone."""
    train, test = (labels < data.classes // 2 for labels in (data.y_train, data.y_test))
    return dataclasses.replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_test[test],
        y_test=data.y_test[test],
    )


def is_text(network: str) -> bool:
    """Whether this is the name of a language model."""
    return network.startswith("decoder")


def layers(network: str) -> int:
    """The layers of the decoder of this name, or the residual blocks of the ResNet.

    Raises:
        ValueError: No network has this name, or it has no two residual blocks in a row.
    """
    found = re.fullmatch(r"decoder([2-9]|[1-9]\d+)", network)
    if found is not None:
        return int(found[1])
    message = f"{network!r} is not a network of this benchmark; there are {NAMES}"
    if is_text(network):
        raise ValueError(message)
    parsed = cifar_networks.parse(network)
    if parsed.family != "resnet" or not parsed.batch_norm or parsed.depth < SHALLOWEST:
        raise ValueError(message)
    return parsed.depth // 2 - 1
