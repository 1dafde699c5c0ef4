"""A run's epochs as a table for other programs: ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from momentumnet.files import whole_file


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        number: From 1.
        loss: Mean over the training batches, as they were trained on.
        accuracy: Share of the validation images, from 0 to 1, whose class was found.
        train_accuracy: The same of the training batches, as they were trained on.
        validation_loss: Mean cross entropy over the validation images.
        lr: Learning rate of the last step.
        seconds: Of the training, without the validation.
    """

    number: int
    loss: float
    accuracy: float
    train_accuracy: float
    validation_loss: float
    lr: float
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether both losses are."""
        return math.isfinite(self.loss) and math.isfinite(self.validation_loss)


def best_of(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch of the best validation accuracy, the first one of several."""
    return max(epochs, key=lambda epoch: (epoch.accuracy, -epoch.number))


def write_metrics(path: Path, epochs: Mapping[str, Sequence[Epoch]], peaks: Mapping[str, int]) -> None:
    """Writes a row for each network and epoch.

    Args:
        path: The file.
        epochs: By network.
        peaks: Peak bytes of a training step beside parameters and gradients, by network.

    Raises:
        StorageError: The file cannot be written.
    """
    names = [field.name for field in fields(Epoch)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["network", *names, "peak_bytes"])
    for network, rows in epochs.items():
        writer.writerows([network, *(getattr(epoch, name) for name in names), peaks[network]] for epoch in rows)
    whole_file.write_text(path, text.getvalue())
