"""The images to train and evaluate on: scikit-learn's digits, a data set of torchvision, or a folder of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler
from torchvision.transforms import v2

from momentumnet.command_errors import UsageError
from momentumnet.finetuning import image_folder, named_data
from momentumnet.finetuning.images import BrokenImageError, Preprocessing
from momentumnet.finetuning.processes import ALONE, Processes
from momentumnet.listing import listed

DIGITS, DIGITS_SIZE = "digits", 48
FOLDER_SIZE = 224
FILE_WORKERS = 2
AUGMENTATIONS: dict[str, Callable[[], list[Callable[[Any], Any]]]] = {
    "none": list,
    "flip": lambda: [v2.RandomHorizontalFlip()],
    "crop": lambda: [v2.RandomHorizontalFlip(), v2.RandomAffine(0, translate=(0.1, 0.1), scale=(0.9, 1.1))],
    "randaugment": lambda: [v2.RandomHorizontalFlip(), v2.RandAugment()],
    "trivialaugment": lambda: [v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()],
    "autoaugment": lambda: [v2.RandomHorizontalFlip(), v2.AutoAugment()],
}
# Pixels of the digits: the largest, mean and deviation.
DIGITS_LARGEST, DIGITS_MEAN, DIGITS_STD = 16, 4.9, 6.0


@dataclass(frozen=True)
class ImageData:
    """Images with their classes, in a training and a validation part (map-style data sets that know their length).

    ``held_out`` says which images of a folder the validation part is, where it is a share of them.
    """

    name: str
    train: Any
    validation: Any
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    workers: int
    held_out: str | None = None

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Side of the images that a network is given."""
        return self.preprocessing.image_size

    def batches(
        self, part: Any, batch_size: int, *, shuffle_seed: int | None = None, processes: Processes = ALONE
    ) -> Batches:
        """Batches of one part: in order, or in an order that depends on ``shuffle_seed`` alone.

        Shuffled batches are all full: batch normalisation cannot train on a last batch of a single image. Of several
        processes each gets its part of each batch.
        """
        generator = None if shuffle_seed is None else torch.Generator().manual_seed(shuffle_seed)
        order = SequentialSampler(part) if generator is None else RandomSampler(part, generator=generator)
        batches = BatchSampler(order, batch_size, drop_last=generator is not None)
        own = batches if processes.count == 1 else _Part(batches, processes)
        return Batches(DataLoader(part, batch_sampler=own, generator=generator, num_workers=self.workers))


class _Part(Sampler[list[int]]):
    """A process's part of batches."""

    def __init__(self, batches: BatchSampler, processes: Processes) -> None:
        self._batches, self._processes = batches, processes

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return self._processes.part(self._batches)


class Batches:
    """Images and labels of a loader, whose workers' errors arrive as they were raised."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            yield from self._loader
        except BrokenImageError as error:  # from a worker it comes with the worker's traceback in its message
            said = str(error).strip().splitlines()[-1]
            raise BrokenImageError(said.rpartition(f"{BrokenImageError.__name__}: ")[2]) from error


def is_named(source: str) -> bool:
    """Whether ``source`` names a data set, and no folder."""
    return source == DIGITS or source in named_data.NAMED


def default_size(source: str) -> int:
    """The side that images of ``source`` are brought to where the model does not need more."""
    if source == DIGITS:
        return DIGITS_SIZE
    return named_data.NAMED[source].size if source in named_data.NAMED else FOLDER_SIZE


@dataclass(frozen=True)
class Reading:
    """How images are read and split.

    Attributes:
        augment: What is done to training images by chance, of `AUGMENTATIONS`; None for ``flip``, but for digits and
            letters.
        workers: Processes that read files; None for two, and none for what lies in memory.
        validation: Share of a folder's images that is held out where it has no part of its own for that.
        skip_broken: Whether files that cannot be read are left out of a folder, and counted.
    """

    augment: str | None = None
    workers: int | None = None
    validation: float | None = None
    skip_broken: bool = False

    def changes(self, *, mirrored: bool = True) -> list[Callable[[Any], Any]]:
        """What is done to training images, whose mirror images may show something else."""
        return AUGMENTATIONS[self.augment or ("flip" if mirrored else "none")]()

    @property
    def file_workers(self) -> int:
        """Processes that read files."""
        return FILE_WORKERS if self.workers is None else self.workers


def load_images(
    source: str, *, image_size: int, say: Callable[[str], None], reading: Reading | None = None
) -> ImageData:
    """Loads ``digits``, a data set of torchvision or the folder ``source``, brought to ``image_size`` x ``image_size``.

    Data sets of torchvision are downloaded to ``data``.

    Args:
        source: What to load.
        image_size: Side in pixels.
        say: Takes lines of what the user should know of a folder.
        reading: How to read and split them.

    Raises:
        UsageError: A folder that does not hold images in ``train/CLASS`` and ``val/CLASS``, a file that cannot be read,
            a data set without network, or a way to read that is not for this source.
    """
    reading = reading or Reading()
    if reading.validation is not None and is_named(source):
        raise UsageError(f"--validation is for folders of images; {source} has validation images of its own")
    if reading.skip_broken and is_named(source):
        raise UsageError(f"--skip-broken is for folders of images; {source} is one data set, and is read whole")
    if source == DIGITS:
        if reading.augment not in (None, "none"):
            raise UsageError(
                f"--augment {reading.augment} is for photographs, and a digit mirrored is none: leave it out"
            )
        return _digits(image_size)
    if source in named_data.NAMED:
        return _named(source, image_size, reading)
    return _folder(Path(source), image_size, say, reading)


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
    images = (torch.tensor(pixels, dtype=torch.float32).view(-1, 8, 8) - DIGITS_MEAN) / DIGITS_STD
    targets = torch.tensor(labels)
    train, held_out = train_test_split(range(len(targets)), test_size=0.2, stratify=labels, random_state=0)
    parts = [_Digits(images[index], targets[index], image_size) for index in (train, held_out)]
    mean, std = (DIGITS_MEAN / DIGITS_LARGEST,) * 3, (DIGITS_STD / DIGITS_LARGEST,) * 3  # of a file, from 0 to 1
    preprocessing = Preprocessing(image_size, mean, std, greyscale=True)
    return ImageData("digits", parts[0], parts[1], tuple("0123456789"), preprocessing, workers=0)


def _named(name: str, image_size: int, reading: Reading) -> ImageData:
    found = named_data.fetched(name)
    preprocessing = Preprocessing(image_size, greyscale=found.greyscale)
    train, validation = found.parts(preprocessing, *reading.changes(mirrored=found.mirrored))
    names = found.class_names(train)
    return ImageData(name, train, validation, names, preprocessing, workers=reading.file_workers)


def _folder(root: Path, image_size: int, say: Callable[[str], None], reading: Reading) -> ImageData:
    preprocessing = Preprocessing(image_size)
    ways = preprocessing.transform(*reading.changes()), preprocessing.transform()
    places = _places(root, reading)
    tellers = say, (say if places[0] != places[1] else _nothing)  # of one folder, once
    train, validation = (
        image_folder.load(place, way, say=tell, skip_broken=reading.skip_broken)
        for place, way, tell in zip(places, ways, tellers, strict=True)
    )
    if train.classes != validation.classes:
        different = sorted(set(train.classes) ^ set(validation.classes))
        raise UsageError(f"{root}/train and {root}/val hold different classes: {listed(different)}")
    image_folder.warn_of_few(train, say)
    share, names = reading.validation, tuple(train.classes)
    held_out = None if share is None else image_folder.split(train, validation, share)
    return ImageData(str(root), train, validation, names, preprocessing, reading.file_workers, held_out)


def _nothing(_: str) -> None:
    """What a folder that is read a second time says."""


def _places(root: Path, reading: Reading) -> tuple[Path, Path]:
    """Where the images to train and to validate on lie."""
    train, validation = root / "train", root / "val"
    if reading.validation is None:
        missing = [place.name for place in (train, validation) if not place.is_dir()]
        if missing:
            raise UsageError(
                f"{root} has no folder {missing[0]}: images are expected in {root}/train/CLASS/ and {root}/val/CLASS/, "
                f"or in {root}/CLASS/ with --validation 0.2, which holds a fifth of them out"
            )
        return train, validation
    if validation.is_dir():
        raise UsageError(f"{root} has a folder val of its own: leave out --validation, or move it away")
    place = train if train.is_dir() else root
    return place, place


def validation_of(
    source: str, preprocessing: Preprocessing, *, say: Callable[[str], None], reading: Reading
) -> ImageData:
    """The images of ``source`` to evaluate on, prepared as a run says: of a folder ``val``, or else the folder itself.

    Raises:
        UsageError: As for `load_images`.
    """
    if is_named(source) or reading.validation is not None:
        return load_images(source, image_size=preprocessing.image_size, say=say, reading=reading)
    root = Path(source, "val") if Path(source, "val").is_dir() else Path(source)
    images = image_folder.load(root, preprocessing.transform(), say=say, skip_broken=reading.skip_broken)
    return ImageData(str(root), [], images, tuple(images.classes), preprocessing, workers=reading.file_workers)
