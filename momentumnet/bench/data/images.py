"""Small images in memory, for the benchmarks of trainings and the examples.

CIFAR-10 from a file or from torchvision, or the digits that come with scikit-learn.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10

from momentumnet.bench.data.downloads import ROOT, fetch

# Of ImageNet, as (3, 1, 1): what the checkpoints of the CIFAR ResNets were trained with.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
SHIFT = 4


@dataclass(frozen=True)
class ImageData:
    """Images, uint8 of shape (N, 3, H, W), with their classes, int64 of shape (N,)."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    augmented: bool  # whether shifted and mirrored copies are still images of the same class

    @property
    def classes(self) -> int:
        """Number of classes, which are counted from zero."""
        return int(self.y_train.max()) + 1

    @property
    def side(self) -> int:
        """Pixels of an image's height."""
        return self.x_train.shape[2]

    def examples(self, count: int = 32) -> Tensor:
        """A few training images as the network takes them, for ``momentumnet.convert`` to look at."""
        return normalised(self.x_train[:count])

    def part(self, *, train: int | None, test: int | None) -> ImageData:
        """As many of the training and of the test images, drawn by chance but always the same ones; None for all."""
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(self.x_train), generator=generator)[:train]
        held_out = torch.randperm(len(self.x_test), generator=generator)[:test]
        return dataclasses.replace(
            self,
            x_train=self.x_train[chosen],
            y_train=self.y_train[chosen],
            x_test=self.x_test[held_out],
            y_test=self.y_test[held_out],
        )

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images in order, as the network takes them, with their classes."""
        for x, y in zip(self.x_test.split(size), self.y_test.split(size), strict=True):
            yield normalised(x), y

    def train_batches(self, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch of full batches; order and augmentation depend on ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.x_train), generator=generator)
        for chosen in order.split(size)[: len(order) // size]:
            x = normalised(self.x_train[chosen])
            yield (shifted_and_mirrored(x, generator) if self.augmented else x), self.y_train[chosen]


def normalised(images: Tensor) -> Tensor:
    """uint8 images as float32, with ImageNet's mean and deviation taken out."""
    return (images.float() / 255 - MEAN) / DEVIATION


def shifted_and_mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to 4 pixels and mirrored by chance (He et al. 2015, section 4.2)."""
    count, _, height, width = x.shape
    padded = F.pad(x, (SHIFT,) * 4)
    rows = torch.randint(2 * SHIFT + 1, (count, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * SHIFT + 1, (count, 1), generator=generator) + torch.arange(width)
    images = torch.arange(count).view(-1, 1, 1)
    x = padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def load_npz(path: Path) -> ImageData:
    """Images from a NumPy archive with x_train, y_train, x_test, y_test; images uint8 of shape (N, 32, 32, 3).

    Raises:
        ValueError: the file is no such archive.
        OSError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in ARRAYS if name not in archive]
            arrays = [archive[name] for name in ARRAYS if name not in missing]
    except (ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise ValueError(f"{path} is no NumPy archive (.npz): {error}") from error
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; expected the arrays {', '.join(ARRAYS)}")
    for name, images in zip(ARRAYS[::2], arrays[::2], strict=True):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{path}: {name} is {images.dtype} {images.shape}, expected uint8 of shape (N, 32, 32, 3)")
    return _from_arrays(path.stem, *arrays)


def load_cifar10() -> ImageData:
    """All of CIFAR-10, downloaded to the folder ``data`` unless it lies there already.

    Raises:
        OSError: it could not be downloaded.
    """
    problem = fetch("CIFAR10", CIFAR10.url)
    if problem is not None:
        raise OSError(f"CIFAR-10 could not be downloaded ({problem}); give a file of images with --data")
    train, test = (CIFAR10(ROOT, train=part) for part in (True, False))
    return _from_arrays("CIFAR-10", train.data, np.array(train.targets), test.data, np.array(test.targets))


def load_digits() -> ImageData:
    """scikit-learn's 1797 grey digits of 8x8 pixels as three equal colours, every fifth of them for testing."""
    from sklearn import datasets

    pixels, labels = datasets.load_digits(return_X_y=True)
    grey = (pixels * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8, 1)
    images = np.repeat(grey, 3, axis=3)
    held_out = np.arange(len(labels)) % 5 == 0
    parts = (images[~held_out], labels[~held_out], images[held_out], labels[held_out])
    return _from_arrays("digits", *parts, augmented=False)


def _from_arrays(
    name: str,
    x_train: np.ndarray[Any, Any],
    y_train: np.ndarray[Any, Any],
    x_test: np.ndarray[Any, Any],
    y_test: np.ndarray[Any, Any],
    *,
    augmented: bool = True,
) -> ImageData:
    x_train, x_test = (np.ascontiguousarray(images.transpose(0, 3, 1, 2)) for images in (x_train, x_test))
    return ImageData(
        name,
        torch.from_numpy(x_train),
        torch.from_numpy(y_train.astype(np.int64)),
        torch.from_numpy(x_test),
        torch.from_numpy(y_test.astype(np.int64)),
        augmented,
    )
