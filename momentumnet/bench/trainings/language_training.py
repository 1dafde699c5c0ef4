"""The course of a language model's training on windows of a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from momentumnet.bench.trainings.training import TrainingCourse, TrainingData


class Windows(TrainingData, Protocol):
    """Windows of a text, which are their own targets."""

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Those that are held out, in order, the last batch perhaps a smaller one."""


@dataclass
class TextCourse(TrainingCourse[Windows]):
    """The course of the training of a `momentumnet.bench.networks.language_models.LanguageModel` on a text.

    Attributes:
        validation_losses: On the windows that are held out, in nats a byte or character, after each epoch.
    """

    validation_losses: list[float] = field(default_factory=list, kw_only=True)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean cross entropy of what comes next; the mean of the model's chunks, which should be of one size."""
        losses: Tensor = model(x)
        return losses.mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> None:
        """Notes the validation loss, in eval mode."""
        model.eval()
        batches = [tokens.to(self.device) for tokens, _ in self.data.test_batches(self.batch_size)]
        losses = [len(tokens) * float(self.loss(model, tokens, tokens)) for tokens in batches]
        self.validation_losses.append(sum(losses) / sum(map(len, batches)))
