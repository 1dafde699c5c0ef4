"""Image files: read as RGB whatever they hold, and brought to what a network takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision import transforms

from momentumnet.command_errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class BrokenImageError(UsageError):
    """A file does not hold an image that can be read; its name stands at the message's front."""


def read_image(path: str | Path) -> Image.Image:
    """Reads an image as 8-bit RGB: grey, palette, CMYK, with transparency (on white), or 16 bits, scaled to 8.

    Raises:
        BrokenImageError: It is empty, cut off, too large to be trusted, or no image.
    """
    with _opened(path) as image:
        image.load()
        return _rgb(image)


def check_header(path: str | Path) -> None:
    """Opens an image without decoding it, which is quick and finds what is empty, too large, or no image.

    Raises:
        BrokenImageError: It is one of these.
    """
    with _opened(path):
        pass


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenImageError(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS} pixels, which Pillow takes for an attack; make it smaller"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        raise BrokenImageError(f"{path}: {_reason(path, error)}") from error


def _reason(path: str | Path, error: Exception) -> str:
    if _is_empty(path):
        return "an empty file"
    if isinstance(error, OSError) and error.strerror:  # no file, a folder, one that may not be read
        return error.strerror
    return str(error).replace(f" {str(path)!r}", "") or "cannot be decoded"


def _is_empty(path: str | Path) -> bool:
    try:
        return Path(path).stat().st_size == 0
    except OSError:
        return False


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255 when it converts
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray((np.asarray(image).clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to what a network takes.

    Attributes:
        image_size: Side of the square that is cut from the middle.
        mean: Of each channel, subtracted from values between 0 and 1.
        std: Of each channel, by which they are divided then.
        greyscale: Whether colours are taken away first.
    """

    image_size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    greyscale: bool = False

    def transform(self, *changes: Callable[[Any], Any]) -> Callable[[Image.Image], Tensor]:
        """The whole of it as a function, with ``changes`` to the square image on the way."""
        grey = [transforms.Grayscale(3)] if self.greyscale else []
        size = [transforms.Resize(self.image_size), transforms.CenterCrop(self.image_size)]
        composed: Callable[[Image.Image], Tensor] = transforms.Compose(
            [*grey, *size, *changes, transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        )
        return composed

    def values(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Of `values`, after a way through JSON."""
        return cls(values["image_size"], tuple(values["mean"]), tuple(values["std"]), values["greyscale"])
