"""The course of a language model's training on windows of bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from momentumnet.bench.byte_windows import ByteWindows
from momentumnet.bench.training import TrainingCourse


@dataclass
class TextCourse(TrainingCourse[ByteWindows]):
    """The course of the training of a `momentumnet.bench.language_models.LanguageModel` on a text.

    Attributes:
        validation_losses: On the windows that are held out, in nats a byte, after each epoch.
    """

    validation_losses: list[float] = field(default_factory=list, kw_only=True)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The mean cross entropy of the next byte; the mean of the model's chunks, which should be of one size."""
        losses: Tensor = model(x)
        return losses.mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> None:
        """Notes the validation loss, in eval mode."""
        model.eval()
        held_out = self.data.x_validation
        sums = [
            float(self.loss(model, tokens, tokens)) * len(tokens)
            for tokens in (part.long().to(self.device) for part in held_out.split(self.batch_size))
        ]
        self.validation_losses.append(sum(sums) / len(held_out))
