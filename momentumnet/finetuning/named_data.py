"""Torchvision's own data sets of images with classes, by name: how their parts are asked for, and what they show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torchvision

from momentumnet.bench.data.downloads import ROOT, fetch
from momentumnet.command_errors import UsageError
from momentumnet.finetuning.images import Preprocessing

TRAIN: Mapping[str, Any] = {"train": True}
TEST: Mapping[str, Any] = {"train": False}


@dataclass(frozen=True)
class NamedData:
    """A data set of torchvision.

    Attributes:
        dataset: Its class in `torchvision.datasets`.
        host: Where it is fetched from.
        train: What asks the class for the images to train on.
        validation: The same for those to validate on: of a validation part, where there is one beside a test part.
        size: Side that images are brought to where the user names none.
        classes: How many, where torchvision has no names for them.
        greyscale: Whether its images have no colours; torchvision gives all others as RGB.
        mirrored: Whether the mirror image of an image shows the same.
    """

    dataset: str
    host: str
    train: Mapping[str, Any]
    validation: Mapping[str, Any]
    size: int = 224
    classes: int = 0
    greyscale: bool = False
    mirrored: bool = True

    def parts(self, preprocessing: Preprocessing, *changes: Any) -> tuple[Any, Any]:
        """The images to train on, with ``changes``, and those to validate on; they lie there."""
        dataset = getattr(torchvision.datasets, self.dataset)
        train = dataset(ROOT, transform=preprocessing.transform(*changes), **self.train)
        return train, dataset(ROOT, transform=preprocessing.transform(), **self.validation)

    def class_names(self, part: Any) -> tuple[str, ...]:
        """The names of the classes, by their labels; numbers where torchvision has none."""
        names = getattr(part, "classes", None) or [str(label) for label in range(self.classes)]
        return tuple(name if isinstance(name, str) else name[0] for name in names)  # Imagenette has several for each


def _digits(dataset: str, host: str, **part: Any) -> NamedData:
    """28 x 28 pixels in grey, of signs that are written."""
    return NamedData(dataset, host, {**part, **TRAIN}, {**part, **TEST}, 32, greyscale=True, mirrored=False)


def _split(dataset: str, host: str, train: str, validation: str, size: int = 224, **rest: Any) -> NamedData:
    return NamedData(dataset, host, {"split": train}, {"split": validation}, size, **rest)


OXFORD = "https://www.robots.ox.ac.uk"
NAMED: Mapping[str, NamedData] = {
    "cifar10": NamedData("CIFAR10", "https://www.cs.toronto.edu", TRAIN, TEST, 64),
    "cifar100": NamedData("CIFAR100", "https://www.cs.toronto.edu", TRAIN, TEST, 64),
    "mnist": _digits("MNIST", "https://ossci-datasets.s3.amazonaws.com"),
    "fashionmnist": NamedData(
        "FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", TRAIN, TEST, 32, greyscale=True
    ),
    "kmnist": _digits("KMNIST", "http://codh.rois.ac.jp"),
    "emnist": _digits("EMNIST", "https://biometrics.nist.gov", split="balanced"),
    "svhn": _split("SVHN", "http://ufldl.stanford.edu", "train", "test", 32, classes=10, mirrored=False),
    "stl10": _split("STL10", "http://ai.stanford.edu", "train", "test", 96),
    "flowers102": _split("Flowers102", OXFORD, "train", "val", classes=102),
    "dtd": _split("DTD", OXFORD, "train", "val"),
    "oxfordiiitpet": _split("OxfordIIITPet", OXFORD, "trainval", "test"),
    "fgvcaircraft": _split("FGVCAircraft", OXFORD, "train", "val"),
    "food101": _split("Food101", "http://data.vision.ee.ethz.ch", "train", "test"),
    "gtsrb": _split("GTSRB", "https://sid.erda.dk", "train", "test", 64, classes=43, mirrored=False),
    "country211": _split("Country211", "https://openaipublic.azureedge.net", "train", "valid"),
    "imagenette": _split("Imagenette", "https://s3.amazonaws.com", "train", "val"),
}


def fetched(name: str) -> NamedData:
    """The data set ``name``, which lies in the folder ``data`` then.

    Raises:
        UsageError: It does not, and cannot be downloaded.
    """
    found = NAMED[name]
    for part in (found.train, found.validation):
        if problem := fetch(found.dataset, found.host, **part):
            raise UsageError(
                f"--data {name} could not be downloaded ({problem}): put it into {ROOT}/, name a folder of images, "
                "or take --data digits"
            )
    return found
