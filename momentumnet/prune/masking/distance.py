"""How far masks are from each other, and the early-bird rule that stops when they no longer move."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from momentumnet.options import is_finite, whole
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.masking.scores import Shares, magnitude_masks


def mask_distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The share of elements on which two sets of masks differ: the Hamming distance over the number of elements.

    You et al., "Drawing Early-Bird Tickets", ICLR 2020, arXiv 1909.11957, section 4.

    Args:
        a: Masks by name.
        b: Masks of the same names and shapes.

    Returns:
        A number in [0, 1]; 0.0 for masks without elements.

    Raises:
        ValueError: names or shapes differ.

    Example:
        >>> import torch
        >>> mask_distance({"w": torch.tensor([True, True])}, {"w": torch.tensor([True, False])})
        0.5
    """
    if a.keys() != b.keys():
        raise ValueError(f"masks differ in their names: {sorted(a.keys() ^ b.keys())} are in one of them only")
    total = differing = 0
    for name, mask in a.items():
        if mask.shape != b[name].shape:
            raise ValueError(f"masks of {name!r} differ in shape: {tuple(mask.shape)} and {tuple(b[name].shape)}")
        total += mask.numel()
        differing += int((mask != b[name].to(mask.device)).sum())
    return differing / total if total else 0.0


class MaskWindow:
    """The newest masks of a training, and whether they have settled.

    Args:
        window: Number of masks that are compared, at least 2.
        tolerance: They have settled when the window is full and the newest mask's largest distance to the others is
            below this.

    Attributes:
        masks: Those in the window, the newest last.
        distances: For each `update` after the first, the largest distance of its masks to the others in the window.
    """

    def __init__(self, *, window: int = 5, tolerance: float = 0.1) -> None:
        self.window, self.tolerance = window, tolerance
        self.masks: list[Masks] = []
        self.distances: list[float] = []

    def update(self, newest: Masks) -> bool:
        """Takes new masks; whether they have settled."""
        earlier = self.masks[1 - self.window :]
        if earlier:
            self.distances.append(max(mask_distance(newest, masks) for masks in earlier))
        self.masks = [*earlier, newest]
        return len(self.masks) == self.window and self.distances[-1] < self.tolerance


class EarlyBird:
    """Says when the masks of a network in training have settled, so that a ticket can be drawn early.

    `update`, called after each epoch, finds the magnitude mask of the network as it is and keeps the last ``window``
    of them. The ticket is there when the window is full and the largest distance of the newest mask to the others is
    below ``tolerance``. This is the rule of the code that You et al. published (ICLR 2020, arXiv 1909.11957), but for
    two things: their masks are of channels, by the scale of batch norms, ours of weights, by their magnitude; and they
    allow the tolerance itself. The text of the paper speaks of distances between consecutive epochs.

    Args:
        model: The network that is trained. It needs no masks.
        fraction: Of the weights that the mask removes, as in `magnitude_masks`.
        scope: As in `magnitude_masks`.
        window: Number of masks that are compared.
        tolerance: Of the distance.
        skip: As in `prunable`.

    Raises:
        ValueError: ``window`` is no whole number of at least 2, or ``tolerance`` not in (0, 1].

    Example:
        >>> model = nn.Linear(4, 5)
        >>> bird = EarlyBird(model, fraction=0.5, window=2)
        >>> [bird.update(), bird.update()]  # nothing was trained in between
        [False, True]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        fraction: Shares,
        scope: str = "global",
        window: int = 5,
        tolerance: float = 0.1,
        skip: Collection[str] = (),
    ) -> None:
        whole("window", window, least=2)
        if not (is_finite(tolerance) and 0 < tolerance <= 1):
            raise ValueError(f"tolerance must be above 0 and at most 1, got {tolerance!r}")
        self._model, self._fraction, self._scope, self._skip = model, fraction, scope, skip
        self._seen = MaskWindow(window=window, tolerance=tolerance)

    @property
    def distances(self) -> list[float]:
        """The largest distances, one for each update after the first."""
        return self._seen.distances

    @property
    def masks(self) -> Masks:
        """The newest masks: the ticket, once `update` has said so.

        Raises:
            ValueError: there was no update yet.
        """
        if not self._seen.masks:
            raise ValueError("there are no masks yet; call update after an epoch")
        return self._seen.masks[-1]

    def update(self) -> bool:
        """Take the network's mask as it is now; whether the ticket has emerged."""
        return self._seen.update(
            magnitude_masks(self._model, fraction=self._fraction, scope=self._scope, skip=self._skip)
        )

    def state_dict(self) -> dict[str, Any]:
        """The masks in the window and the distances; the options are those that the object was made with."""
        return {"masks": [dict(masks) for masks in self._seen.masks], "distances": list(self.distances)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it holds other keys, or more masks than the window.
        """
        if set(state) != {"masks", "distances"}:
            raise ValueError(f"an EarlyBird's state has the keys 'masks' and 'distances', got {sorted(state)}")
        if len(state["masks"]) > self._seen.window:
            raise ValueError(f"the state holds {len(state['masks'])} masks, the window is {self._seen.window}")
        self._seen.masks = [dict(masks) for masks in state["masks"]]
        self._seen.distances = list(state["distances"])
