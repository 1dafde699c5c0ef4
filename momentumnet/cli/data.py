"""The images to fine-tune on: scikit-learn's digits, CIFAR-10, or a folder of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder

from momentumnet.bench.downloads import CIFAR_ROOT, fetch_cifar
from momentumnet.cli.errors import CommandError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEFAULT_SIZES = {"digits": 48, "cifar10": 64}
FOLDER_SIZE = 224
FILE_WORKERS = 2


@dataclass(frozen=True)
class ImageData:
    """Images with their classes, in a training and a validation part (map-style data sets that know their length)."""

    name: str
    train: Any
    validation: Any
    classes: int
    image_size: int
    workers: int

    def batches(self, part: Any, batch_size: int, *, shuffle_seed: int | None = None) -> DataLoader[Any]:
        """Batches of one part: in order, or in an order that depends on ``shuffle_seed`` alone.

        Shuffled batches are all full: batch normalisation cannot train on a last batch of a single image.
        """
        shuffle = shuffle_seed is not None
        generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
        return DataLoader(
            part, batch_size, shuffle=shuffle, drop_last=shuffle, generator=generator, num_workers=self.workers
        )


def default_size(source: str) -> int:
    """The side that images of ``source`` are brought to where the model does not need more."""
    return DEFAULT_SIZES.get(source, FOLDER_SIZE)


def load_images(source: str, *, image_size: int, say: Callable[[str], None]) -> ImageData:
    """Loads ``digits``, ``cifar10`` or the folder ``source``, brought to ``image_size`` x ``image_size``.

    CIFAR-10 is downloaded to ``data``; without network the digits take its place, and ``say`` is told so.

    Raises:
        CommandError: A folder that does not hold images in ``train/CLASS`` and ``val/CLASS``.
    """
    if source == "cifar10":
        problem = fetch_cifar()
        if problem is None:
            return _cifar(image_size)
        say(f"data: CIFAR-10 could not be downloaded ({problem}); the embedded digits take its place")
        source = "digits"
    return _digits(image_size) if source == "digits" else _folder(Path(source), image_size)


class _Digits(Dataset[tuple[Tensor, int]]):
    def __init__(self, images: Tensor, labels: Tensor, image_size: int) -> None:
        self._images, self._labels, self._image_size = images, labels, image_size

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        size = (self._image_size, self._image_size)
        image = F.interpolate(self._images[index, None, None], size, mode="bilinear", align_corners=False)
        return image[0].expand(3, -1, -1), int(self._labels[index])


def _digits(image_size: int) -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    # Pixels are 0 to 16 with mean 4.9 and deviation 6.0.
    images = (torch.tensor(pixels, dtype=torch.float32).view(-1, 8, 8) - 4.9) / 6.0
    targets = torch.tensor(labels)
    train, held_out = train_test_split(range(len(targets)), test_size=0.2, stratify=labels, random_state=0)
    parts = [_Digits(images[index], targets[index], image_size) for index in (train, held_out)]
    return ImageData("digits", parts[0], parts[1], classes=10, image_size=image_size, workers=0)


def _cifar(image_size: int) -> ImageData:
    train = CIFAR10(CIFAR_ROOT, train=True, transform=_transform(image_size, training=True))
    validation = CIFAR10(CIFAR_ROOT, train=False, transform=_transform(image_size, training=False))
    return ImageData("cifar10", train, validation, classes=10, image_size=image_size, workers=FILE_WORKERS)


def _folder(root: Path, image_size: int) -> ImageData:
    parts = []
    for name in ("train", "val"):
        if not (root / name).is_dir():
            raise CommandError(
                f"{root} has no folder {name}: images are expected in {root}/train/CLASS/ and {root}/val/CLASS/"
            )
        try:
            parts.append(ImageFolder(str(root / name), transform=_transform(image_size, training=name == "train")))
        except FileNotFoundError as error:  # no class folders, or one without images
            raise CommandError(f"{root / name} cannot be used: {error}") from error
    train, validation = parts
    if train.classes != validation.classes:
        different = sorted(set(train.classes) ^ set(validation.classes))
        raise CommandError(f"{root}/train and {root}/val hold different classes: {', '.join(different)}")
    return ImageData(str(root), train, validation, len(train.classes), image_size, workers=FILE_WORKERS)


def _transform(image_size: int, *, training: bool) -> Callable[[Any], Tensor]:
    flip = [transforms.RandomHorizontalFlip()] if training else []
    return transforms.Compose(
        [
            transforms.Resize(image_size),
            transforms.CenterCrop(image_size),
            *flip,
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
