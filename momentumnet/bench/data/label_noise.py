"""Wrong labels for the benchmarks of trainings."""

from __future__ import annotations

import dataclasses

import torch

from momentumnet.bench.data.images import ImageData


def with_wrong_labels(data: ImageData, percent: float, seed: int) -> ImageData:
    """The images with symmetric noise in the training labels; test labels stay.

    ``percent`` of the training images, to the nearest image, are drawn without replacement, and the label of each
    becomes one of the other classes, all equally likely. This is the noise of Zhang and Sabuncu (NeurIPS 2018): a label
    stays with probability 1 - eta and becomes each of the other c - 1 classes with probability eta / (c - 1). The
    number of wrong labels is exact here, where theirs is so in the mean. Others draw from all c classes, of which
    ``percent`` then leaves one in c right. Foret et al. (ICLR 2021, section 3.3) say "randomly flipped" and no more.

    Args:
        data: Images and classes.
        percent: Share of wrong labels, at least 0 and less than 100.
        seed: Decides which, and what they become. With the same seed, more noise spoils what less noise does too.

    Raises:
        ValueError: ``percent`` is not in this range, or there is one class only.
    """
    if not 0 <= percent < 100:
        raise ValueError(f"percent must be at least 0 and less than 100, got {percent}")
    classes = data.classes
    if classes < 2:
        raise ValueError("labels of a single class cannot be wrong; give images of several classes")
    generator = torch.Generator().manual_seed(seed)
    count = round(percent / 100 * len(data.y_train))
    order = torch.randperm(len(data.y_train), generator=generator)
    shifts = torch.randint(1, classes, (len(order),), generator=generator)
    labels = data.y_train.clone()
    wrong = order[:count]
    labels[wrong] = (labels[wrong] + shifts[:count]) % classes
    return dataclasses.replace(data, y_train=labels)
