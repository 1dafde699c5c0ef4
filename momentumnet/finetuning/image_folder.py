"""Folders of images, a folder a class: looked at before any work, as far as that is quick."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from momentumnet.command_errors import UsageError
from momentumnet.finetuning.images import BrokenImageError, check_header, read_image
from momentumnet.listing import listed

NAMED = 3  # broken files, in a line that counts them all
_OF_SYSTEMS = ("Thumbs.db", "desktop.ini")


class _Images(ImageFolder):
    """The images in the folders of classes, but for hidden ones, as Jupyter (.ipynb_checkpoints) and macOS leave."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = sorted(place.name for place in os.scandir(directory) if place.is_dir() and not _is_hidden(place.name))
        if not names:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return names, {name: label for label, name in enumerate(names)}


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def load(root: Path, transform: Callable[[Any], Any], *, say: Callable[[str], None], skip_broken: bool) -> ImageFolder:
    """The images in ``root/CLASS``.

    Args:
        root: The folder of folders.
        transform: Makes of an RGB image what a network takes.
        say: Takes lines of how many files are left out.
        skip_broken: Whether files that cannot be read are left out. That reads all of them once; without it each file
            is opened, which finds those that are empty or no images, and those that are cut off are found when they
            are read.

    Raises:
        UsageError: There are no folders of images, or a file cannot be read.
    """
    if not root.is_dir():  # a run's folder may be used from another place than where it was trained
        raise UsageError(f"there is no folder {root} in {Path.cwd()}; go to where it is, or name images by --data")
    try:
        images = _Images(str(root), transform=transform, loader=read_image, is_valid_file=partial(_is_image, root))
    except FileNotFoundError as error:  # no class folders, or one without images
        kinds = ", ".join(IMG_EXTENSIONS)
        raise UsageError(f"{root} cannot be used: {str(error).splitlines()[0]} Images are {kinds}") from error
    _tell_of_others(images, say)
    if not skip_broken:
        for path, _ in images.samples:
            _check_opens(path)
        return images
    broken = [path for path, _ in images.samples if _is_broken(path)]
    if broken:
        left_out = set(broken)
        images.samples = images.imgs = [sample for sample in images.samples if sample[0] not in left_out]
        images.targets = [label for _, label in images.samples]
        names = ", ".join(broken[:NAMED]) + (", ..." if len(broken) > NAMED else "")
        say(
            f"{root}: {len(broken)} of {len(broken) + len(images.samples)} files cannot be read and are skipped: "
            f"{names}"
        )
        if not images.samples:
            raise UsageError(f"{root}: none of its files can be read")
    return images


def _is_image(root: Path, path: str) -> bool:
    inside = Path(path).relative_to(root).parts
    return has_file_allowed_extension(path, IMG_EXTENSIONS) and not any(map(_is_hidden, inside))


def _tell_of_others(images: ImageFolder, say: Callable[[str], None]) -> None:
    """Of files that nobody looks at: photographs of a telephone (.heic), moving pictures (.gif)."""
    kinds = Counter(
        Path(file).suffix.lower() or file
        for name in images.classes
        for folder, _, files in os.walk(Path(images.root, name), followlinks=True)
        if not any(map(_is_hidden, Path(folder).relative_to(images.root).parts))
        for file in files
        if not has_file_allowed_extension(file, IMG_EXTENSIONS) and not _is_hidden(file) and file not in _OF_SYSTEMS
    )
    if kinds:
        counted = [f"{count} {kind}" for kind, count in kinds.most_common()]
        say(f"{images.root}: files of other kinds than {', '.join(IMG_EXTENSIONS)} are left out: {listed(counted)}")


def _check_opens(path: str) -> None:
    try:
        check_header(path)
    except BrokenImageError as error:
        raise UsageError(f"{error}; mend or delete it, or leave out such files by --skip-broken") from error


def _is_broken(path: str) -> bool:
    try:
        read_image(path)
    except BrokenImageError:
        return True
    return False


def warn_of_few(images: ImageFolder, say: Callable[[str], None]) -> None:
    """Tells the user where a folder cannot teach what accuracy would measure."""
    counts = Counter(images.targets)
    if len(images.classes) == 1:
        say(f"warning: {images.root} holds one class only, {images.classes[0]}: accuracy is 100 % whatever is learned")
    none = [name for label, name in enumerate(images.classes) if not counts[label]]
    if none:
        say(f"warning: {images.root} holds no image of {listed(none)}")
    single = [images.classes[label] for label, count in sorted(counts.items()) if count == 1]
    if single:
        say(f"warning: {images.root} holds a single image of {listed(single)}: accuracy means little there")


def _by_class(images: ImageFolder) -> list[list[int]]:
    """The indices of each class's images."""
    found: list[list[int]] = [[] for _ in images.classes]
    for index, label in enumerate(images.targets):
        found[label].append(index)
    return found


def split(train: ImageFolder, validation: ImageFolder, share: float) -> str:
    """Holds a share of each class out: leaves the others in ``train``, and only them in ``validation``.

    Args:
        train: All images.
        validation: The same, with the transform of validation.
        share: From 0 to 1; of each class at least one image stays on either side, where there are two.

    Of the same files the same ones are always held out, whatever the run's seed: or else what one run has trained on
    would be what another one, or ``evaluate``, validates on.

    Returns:
        How many are held out, and the start of the SHA-256 of their names: another one where files have come or gone.
    """
    generator = torch.Generator().manual_seed(0)
    held_out: set[int] = set()
    for own in _by_class(train):
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        held_out.update(own[place] for place in torch.randperm(len(own), generator=generator)[: max(count, 0)].tolist())
    for images, inside in ((train, False), (validation, True)):
        samples = [sample for index, sample in enumerate(images.samples) if (index in held_out) == inside]
        images.samples = images.imgs = samples
        images.targets = [label for _, label in samples]
    names = [Path(path).relative_to(validation.root).as_posix() for path, _ in validation.samples]
    return f"{len(names)} files, {hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]}"
