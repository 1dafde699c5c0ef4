"""Data sets of torchvision, read by its own code from small files of their formats."""

from __future__ import annotations

import inspect
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from momentumnet.bench.data import downloads
from momentumnet.command_errors import UsageError
from momentumnet.finetuning import data
from momentumnet.finetuning.data import Reading
from momentumnet.finetuning.images import IMAGENET_MEAN, IMAGENET_STD
from momentumnet.finetuning.named_data import NAMED

COUNTS = {"train": 6, "t10k": 4}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(downloads, "reachable", lambda url: False)


@pytest.fixture
def mnist() -> dict[str, np.ndarray]:
    """A few images in the format of MNIST (idx): big-endian, a magic number, sizes, bytes."""
    folder = Path("data", "FashionMNIST", "raw")
    folder.mkdir(parents=True)
    found = {}
    for part, count in COUNTS.items():
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
        found[part] = pixels
    return found


def test_grey_images_are_read_as_what_they_show(mnist: dict[str, np.ndarray]) -> None:
    images = data.load_images("fashionmnist", image_size=28, say=print, reading=Reading(workers=0))
    assert (len(images.train), len(images.validation)) == (6, 4)
    assert images.class_names[:2] == ("T-shirt/top", "Trouser")
    image, label = images.validation[3]
    assert (tuple(image.shape), label) == ((3, 28, 28), 3)
    for channel in range(3):
        expected = (mnist["t10k"][3] / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        torch.testing.assert_close(image[channel], torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5)
    assert images.preprocessing.greyscale
    with pytest.raises(UsageError, match="fashionmnist has validation images of its own"):
        data.load_images("fashionmnist", image_size=28, say=print, reading=Reading(validation=0.2))


def test_textures_come_with_the_names_of_their_classes() -> None:
    root = Path("data", "dtd", "dtd")
    for folder in ("banded", "dotted"):
        (root / "images" / folder).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (30, 20), (40 * index, 0, 0)).save(root / "images" / folder / f"{folder}_{index}.jpg")
    (root / "labels").mkdir()
    for part, places in (("train", (0, 1)), ("val", (2,))):
        lines = [f"{folder}/{folder}_{place}.jpg\n" for folder in ("banded", "dotted") for place in places]
        (root / "labels" / f"{part}1.txt").write_text("".join(lines))
    images = data.load_images("dtd", image_size=16, say=print, reading=Reading(workers=0))
    assert (len(images.train), len(images.validation), images.class_names) == (4, 2, ("banded", "dotted"))
    assert next(label for _, label in images.batches(images.validation, 2)).tolist() == [0, 1]


@pytest.mark.parametrize("name", NAMED)
def test_without_network_each_is_refused_with_the_cure(name: str) -> None:
    with pytest.raises(UsageError, match=rf"--data {name} could not be downloaded \(no network\): put it into data/"):
        data.load_images(name, image_size=32, say=print)


@pytest.mark.parametrize("name", NAMED)
def test_each_is_asked_for_as_torchvision_knows_it(name: str) -> None:
    found = NAMED[name]
    dataset = getattr(torchvision.datasets, found.dataset)
    known: set[str] = set()
    for cls in dataset.__mro__:
        if "__init__" in vars(cls):
            known |= set(inspect.signature(cls.__init__).parameters)
    assert {*found.train, *found.validation, "transform", "download"} <= known
    assert found.train != found.validation
    assert data.default_size(name) == found.size


def test_photographs_are_brought_to_what_networks_were_trained_with_and_small_images_to_less() -> None:
    names = ("mnist", "cifar10", "stl10", "flowers102", "food101", "digits", "some/folder")
    assert [data.default_size(name) for name in names] == [32, 64, 96, 224, 224, 48, 224]


def test_letters_are_not_mirrored_and_photographs_are() -> None:
    assert Reading().changes(mirrored=NAMED["mnist"].mirrored) == []
    assert len(Reading().changes(mirrored=NAMED["flowers102"].mirrored)) == 1
