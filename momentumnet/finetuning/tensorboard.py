"""A run's epochs as TensorBoard shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from momentumnet.finetuning.metrics import Epoch

FOLDER = "tensorboard"


class Board:
    """Writes the epochs of one network to ``RUN/tensorboard/NETWORK``.

    Args:
        run: Folder of the run.
        network: Its name.
        done: The epochs that are done already. What lies there of later ones counts no more.

    Raises:
        ModuleNotFoundError: The package tensorboard is not installed.
    """

    def __init__(self, run: Path, network: str, done: Sequence[Epoch]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / FOLDER / network
        is_new = not folder.is_dir()
        self._writer = SummaryWriter(str(folder), purge_step=None if is_new else len(done) + 1)
        for epoch in done if is_new else ():
            self.add(epoch)

    def add(self, epoch: Epoch) -> None:
        """Writes one epoch, so that it is in the file."""
        values = asdict(epoch)
        number = values.pop("number")
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
