"""Networks of transformers from a folder or a config, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import own_code
from momentumnet.finetuning.model_inputs import InputShape

PREFIX = "hf:"
CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
LENGTH, IMAGE_SIZE, CHANNELS, SAMPLES = 64, 224, 3, 16_000  # of what a config does not say: tokens, images, sound


def build(path: Path) -> nn.Module:
    """The network that a ``config.json`` describes, with the weights that lie beside it, or else random ones.

    Args:
        path: The file, or its folder.

    Raises:
        MachineError: transformers is not installed.
        UsageError: There is no such file, it describes no network, or the weights cannot be loaded.
    """
    with _described_by(path) as (transformers, config):
        kind, folder = _kind(transformers, config), _folder_of_weights(path)
        if folder is not None:
            loaded: nn.Module = kind.from_pretrained(str(folder), local_files_only=True)
            return loaded
        return _random(kind, config)


def fixed_size(path: Path) -> int | None:
    """The side of the images that the network takes, where its config names one."""
    with _described_by(path) as (_, config):
        return None if getattr(config, "image_size", None) is None else _image(config)[-1]


def classifier(path: Path, classes: int, image_size: int) -> nn.Module:
    """A classifier of images of that kind, with random weights.

    Raises:
        UsageError: transformers has none of that kind, or not for that size.
    """
    with _described_by(path) as (transformers, config):
        config.num_labels = classes
        if getattr(config, "image_size", None) is not None:
            config.image_size = image_size
        return _random(transformers.AutoModelForImageClassification, config)


def pretrained_classifier(path: Path, classes: int) -> tuple[nn.Module | None, list[str]]:
    """The same with the weights that lie beside the config, and the parameters that these do not hold.

    None without weights.
    """
    folder = _folder_of_weights(path)
    if folder is None:
        return None, []
    with _described_by(path) as (transformers, _):
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder),
            num_labels=classes,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
    return model, sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})


@contextmanager
def _described_by(path: Path) -> Iterator[tuple[Any, Any]]:
    """transformers and the config; inside, what it cannot do with it is told in one line."""
    transformers = own_code.package("transformers", extra="hf", asked=f"{PREFIX}{path}")
    file = _file(path)
    if not file.is_file():
        raise UsageError(f"{PREFIX}{path}: there is no {file}; give a folder with {CONFIG}, or such a file")
    try:
        yield transformers, transformers.AutoConfig.from_pretrained(str(file), local_files_only=True)
    except Exception as error:
        raise UsageError(f"{file} cannot be used: {own_code.reason(error)}") from error


def _file(path: Path) -> Path:
    return path / CONFIG if path.is_dir() else path


def _folder_of_weights(path: Path) -> Path | None:
    file = _file(path)
    found = file.name == CONFIG and any(next(file.parent.glob(pattern), None) for pattern in WEIGHTS)
    return file.parent if found else None


def _random(kind: Any, config: Any) -> nn.Module:
    is_class = isinstance(kind, type) and issubclass(kind, nn.Module)
    made: nn.Module = kind(config) if is_class else kind.from_config(config)
    return made


def _kind(transformers: Any, config: Any) -> Any:
    names = config.architectures or []
    return next((getattr(transformers, name) for name in names if hasattr(transformers, name)), transformers.AutoModel)


def vocabulary(model: Any) -> int:
    """How many tokens the network knows; 2 for one that knows none."""
    return max(2, getattr(model.config.get_text_config(), "vocab_size", None) or 2)


def default_inputs(model: Any, batch: int) -> list[InputShape]:
    """What the network is made for, as far as its config tells.

    Raises:
        UsageError: It does not tell.
    """
    config, name = model.config, model.main_input_name
    if name == "input_ids":
        shapes = [_tokens(config, name, batch)]
    elif name == "pixel_values":
        shapes = [InputShape((batch, *_image(config)), keyword=name)]
    elif name in ("input_values", "input_features"):
        shapes = [InputShape((batch, *_sound(config, name)), keyword=name)]
    else:
        raise UsageError(f"{type(model).__name__} takes {name}, whose shape its config does not tell: give --input")
    return [*shapes, _tokens(config, "decoder_input_ids", batch)] if config.is_encoder_decoder else shapes


def _tokens(config: Any, name: str, batch: int) -> InputShape:
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or LENGTH
    return InputShape((batch, min(LENGTH, most)), torch.int64, name)


def _image(config: Any) -> tuple[int, ...]:
    """Frames, where it takes a film, channels, height and width."""
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or IMAGE_SIZE
    frames = getattr(config, "num_frames", None)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", None) or CHANNELS
    return (*([] if frames is None else [frames]), channels, height, width)


def _sound(config: Any, name: str) -> tuple[int, ...]:
    """Samples, or what a spectrogram has of them: its bands in front of its moments, or behind."""
    bands = getattr(config, "num_mel_bins", None)
    if name == "input_features" and hasattr(config, "max_source_positions"):
        return int(config.num_mel_bins), 2 * int(config.max_source_positions)
    moments = getattr(config, "max_length", None) if bands else None
    return (SAMPLES,) if moments is None or bands is None else (int(moments), int(bands))
