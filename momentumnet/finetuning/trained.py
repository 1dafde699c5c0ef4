"""What a run's folder holds of the network that was trained, written for those who use it and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import list_models

from momentumnet.command_errors import CommandError, UsageError
from momentumnet.conversion.conversion import convert
from momentumnet.description.description import describe
from momentumnet.errors import CheckpointError, ConversionError
from momentumnet.files import whole_file
from momentumnet.finetuning import model_sources
from momentumnet.finetuning.images import Preprocessing

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1


def write_config(
    folder: Path,
    network: nn.Module,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    settings: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Writes all that turns weights into a network that can be used.

    Args:
        folder: Of the run.
        network: The converted one.
        classes: Their names, by the index of the output.
        preprocessing: From an image to the network's input.
        settings: What makes the run the one that it is; its ``model`` is the name of the stock network.
        options: All that the user has asked for, beside what it came to.
    """
    whole_file.write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "momentumnet": _version(),
            "model": settings["model"],
            "conversion": describe(network),
            "classes": list(classes),
            "preprocessing": preprocessing.values(),
            "settings": dict(settings),
            "options": dict(options or {}),
        },
    )


def _version() -> str | None:
    try:
        return version("momentumnet")
    except PackageNotFoundError:  # run from its sources
        return None


def _is_known(model: str) -> bool:
    return model_sources.is_own(model) or model in list_models()


@dataclass(frozen=True)
class Trained:
    """The network of a run.

    Attributes:
        folder: Of the run.
        model: Name of the stock network.
        classes: Names, by the index of the output.
        preprocessing: From an image to the network's input.
        conversion: What `momentumnet.describe` said of the network.
        settings: Of the run.
    """

    folder: Path
    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    conversion: Mapping[str, Any]
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Trained:
        """Reads a run's folder, but for the weights.

        Raises:
            UsageError: It holds no run, or what it holds is damaged.
        """
        path = folder / CONFIG
        if not path.is_file():
            raise UsageError(
                f"{folder} is not the folder of a run: it holds no {CONFIG}. momentumnet finetune makes one"
            )
        try:
            found = whole_file.read_json(path)
        except CheckpointError as error:
            raise UsageError(f"{error}; start {folder} anew with --overwrite") from error
        if found.get("format") != FORMAT or not _is_known(found["model"]):
            raise UsageError(f"{path} was written by another version of momentumnet (format {found.get('format')})")
        return cls(
            folder,
            found["model"],
            tuple(found["classes"]),
            Preprocessing.from_values(found["preprocessing"]),
            found["conversion"],
            found["settings"],
        )

    def check_outputs(self, outputs: Tensor) -> None:
        """Sees that the network's outputs name a class.

        Raises:
            CommandError: One is NaN: whatever class were taken for the largest would look like an answer.
        """
        if outputs.isnan().any():
            raise CommandError(
                f"the network of {self.folder} puts out NaN: its training has diverged, or its weights are not finite. "
                f"{self.folder}/metrics.csv may show since when; train it anew, for example with a smaller --lr"
            )

    def stock(self) -> nn.Module:
        """The unconverted network with the weights of the run.

        Raises:
            UsageError: There are none yet, or they are damaged.
        """
        from momentumnet.finetuning.weights_file import load_weights

        path = self.folder / WEIGHTS
        if not path.is_file():
            raise UsageError(
                f"{self.folder} holds no {WEIGHTS}: no epoch is done; momentumnet finetune --resume goes on"
            )
        network = model_sources.sized(self.model, len(self.classes), self.preprocessing.image_size)
        try:
            network.load_state_dict(load_weights(path))
        except (CheckpointError, RuntimeError) as error:
            raise UsageError(f"{path} cannot be used: {error}") from error
        return network.eval()

    def network(self, device: torch.device) -> nn.Module:
        """The network that was trained, in eval mode.

        Raises:
            UsageError: The weights are not there, are damaged, or do not fit.
        """
        try:
            return convert(self.stock(), like=self.conversion).to(device).eval()
        except ConversionError as error:
            raise UsageError(f"{self.folder / CONFIG} does not fit {self.model}: {error}") from error
