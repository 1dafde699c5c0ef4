from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torchvision.datasets import CIFAR10, ImageFolder

from momentumnet.bench.data import downloads
from momentumnet.command_errors import UsageError
from momentumnet.finetuning import data, image_folder


def silent(text: str) -> None:
    pytest.fail(f"nothing to tell, yet it said: {text}")


def test_digits() -> None:
    images = data.load_images("digits", image_size=16, say=silent)
    assert (len(images.train), len(images.validation), images.classes) == (1437, 360, 10)
    pixels = torch.stack([image for image, _ in images.train])
    assert pixels.shape == (1437, 3, 16, 16)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert abs(float(pixels.mean())) < 0.05
    assert {label for _, label in images.validation} == set(range(10))


def test_digits_held_out_are_not_trained_on() -> None:
    from sklearn.datasets import load_digits

    images = data.load_images("digits", image_size=8, say=silent)
    split = sorted(
        tuple(image[0].flatten().tolist()) for part in (images.train, images.validation) for image, _ in part
    )
    pixels = (torch.tensor(load_digits().data, dtype=torch.float32) - 4.9) / 6.0
    assert split == sorted(tuple(row.tolist()) for row in pixels)  # every image once: no overlap, none lost


def test_shuffled_batches_follow_the_seed_alone() -> None:
    images = data.load_images("digits", image_size=8, say=silent)

    def labels(seed: int) -> list[int]:
        torch.manual_seed(torch.initial_seed() + 1)
        return [int(label) for _, batch in images.batches(images.train, 100, shuffle_seed=seed) for label in batch]

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)
    assert len(labels(1)) == 1400  # full batches only


def test_validation_batches_are_all_images_in_order() -> None:
    images = data.load_images("digits", image_size=8, say=silent)
    labels = [int(label) for _, batch in images.batches(images.validation, 100) for label in batch]
    assert labels == [label for _, label in images.validation]


def test_folder(photos: Path) -> None:
    images = data.load_images(str(photos), image_size=32, say=silent)
    assert (len(images.train), len(images.validation), images.classes) == (16, 8, 2)
    bright, dark = images.validation[0], images.validation[4]
    assert bright[0].shape == (3, 32, 32)
    assert (bright[1], dark[1]) == (0, 1)
    assert bright[0].mean() > dark[0].mean()
    batches = list(images.batches(images.train, 5, shuffle_seed=0))  # loaded by other processes
    assert [tuple(pixels.shape) for pixels, _ in batches] == [(5, 3, 32, 32)] * 3


def test_folder_without_validation_part_is_refused(photos: Path) -> None:
    shutil.rmtree(photos / "val")
    with pytest.raises(UsageError, match=r"has no folder val: images are expected in .*/train/CLASS/"):
        data.load_images(str(photos), image_size=32, say=silent)


def test_folder_with_other_classes_to_validate_is_refused(photos: Path) -> None:
    (photos / "val" / "dark").rename(photos / "val" / "grey")
    with pytest.raises(UsageError, match="different classes: dark, grey"):
        data.load_images(str(photos), image_size=32, say=silent)


def test_many_classes_are_told_in_a_line_and_looked_at_once(photos: Path) -> None:
    for number in range(40):
        shutil.copytree(photos / "train" / "dark", photos / "train" / f"c{number}")
        for file in sorted((photos / "train" / f"c{number}").iterdir())[1:]:
            file.unlink()
    with pytest.raises(UsageError, match=r"different classes: c0, c1, c10, c11, c12 and 35 more$"):
        data.load_images(str(photos), image_size=32, say=silent)
    said: list[str] = []
    images = ImageFolder(str(photos / "train"))
    image_folder.warn_of_few(images, said.append)
    assert "a single image of c0, c1, c10, c11, c12 and 35 more: " in said[0]
    looked = 0

    class Targets(list[int]):
        def __iter__(self) -> Iterator[int]:
            nonlocal looked
            looked += 1
            return super().__iter__()

    images.targets = Targets(images.targets)
    image_folder.split(images, ImageFolder(str(photos / "train")), 0.25)
    assert looked == 1


def test_files_that_nobody_looks_at_are_told(photos: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.gif", "notes.txt", "Thumbs.db", ".DS_Store"):
        (photos / "train" / "dark" / name).touch()
    said: list[str] = []
    images = data.load_images(str(photos), image_size=32, say=said.append)
    assert len(images.train) == 16
    assert len(said) == 1
    assert said[0].startswith(f"{photos}/train: files of other kinds than .jpg, .jpeg, ")
    assert said[0].endswith(" are left out: 2 .heic, 1 .gif, 1 .txt") or "2 .heic, 1 .txt, 1 .gif" in said[0]


def test_hidden_folders_are_no_classes_and_hidden_files_no_images(photos: Path) -> None:
    """Jupyter leaves .ipynb_checkpoints, with copies of images that were opened, and macOS ._ files beside images."""
    said: list[str] = []
    whole = data.load_images(str(photos), image_size=32, say=said.append)
    for part in ("train", "val"):
        image = next(Path(photos, part).rglob("*.png"))
        for copy in (f"{part}/.ipynb_checkpoints/a.png", f"{part}/.empty/x/b.txt"):
            Path(photos, copy).parent.mkdir(parents=True)
            shutil.copy(image, Path(photos, copy))
        inside = image.parent / ".ipynb_checkpoints"
        inside.mkdir()
        shutil.copy(image, inside / "a-checkpoint.png")
        (inside / "notes.txt").write_text("")
        (image.parent / f"._{image.name}").write_bytes(b"no image")
    images = data.load_images(str(photos), image_size=32, say=said.append)
    assert images.class_names == whole.class_names
    assert (len(images.train), len(images.validation)) == (len(whole.train), len(whole.validation))
    assert said == []


def test_a_folder_of_which_a_part_is_held_out_is_told_of_once(photos: Path) -> None:
    Path(photos, "train", "dark", "a.heic").touch()
    said: list[str] = []
    reading = data.Reading(validation=0.25)
    data.load_images(str(photos / "train"), image_size=32, say=said.append, reading=reading)
    assert len(said) == 1


def test_a_folder_that_is_not_there_says_from_where(photos: Path) -> None:
    with pytest.raises(
        UsageError, match=r"there is no folder nowhere in .*; go to where it is, or name images by --data"
    ):
        data.validation_of("nowhere", data.Preprocessing(32), say=silent, reading=data.Reading())


def test_a_class_of_which_nothing_can_be_read_is_told(photos: Path) -> None:
    for file in (photos / "train" / "dark").iterdir():
        file.write_text("not an image")
    said: list[str] = []
    data.load_images(str(photos), image_size=32, say=said.append, reading=data.Reading(skip_broken=True))
    assert said[-1] == f"warning: {photos}/train holds no image of dark"


def test_folder_without_images_is_refused(photos: Path) -> None:
    for file in (photos / "train" / "dark").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="cannot be used"):
        data.load_images(str(photos), image_size=32, say=silent)


@pytest.mark.parametrize("connected", [False, True])
def test_cifar_without_network_is_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch, connected: bool) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionResetError("line cut")

    monkeypatch.setattr(downloads, "reachable", lambda url: connected)
    monkeypatch.setattr(CIFAR10, "download", fail)
    reason = "line cut" if connected else "no network"
    with pytest.raises(UsageError, match=rf"could not be downloaded \({reason}\): .* or take --data digits"):
        data.load_images("cifar10", image_size=16, say=silent)
