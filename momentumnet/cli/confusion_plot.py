"""A confusion matrix as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from momentumnet.figures import new_figure
from momentumnet.files import whole_file

LABELLED = 30  # classes up to which each has its name at the axes
WRITTEN = 15  # classes up to which the counts stand in the cells


def plot_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], path: Path, *, title: str) -> None:
    """Draws how many images of each class were taken for which, shaded by the share of the class.

    Args:
        counts: A row for each class, a column for what its images were taken for.
        classes: Their names.
        path: The PNG.
        title: Above the picture.
    """
    size = 3.0 + 0.3 * min(len(classes), LABELLED)
    figure = new_figure("evaluate", size + 1, size)
    axes = figure.subplots()
    taken = np.asarray(counts, dtype=np.float64).reshape(len(classes), len(classes))
    shares = taken / taken.sum(axis=1, keepdims=True).clip(min=1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= LABELLED:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    if len(classes) <= WRITTEN:
        for row, line in enumerate(counts):
            for column, count in enumerate(line):
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(title, fontsize=10)
    figure.colorbar(picture, label="share of the class's images")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    whole_file.write(path, lambda sink: sink.write(image.getvalue()))
