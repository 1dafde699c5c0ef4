"""What channels and blocks have in common as units of pruning: controls by chance, and networks without them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

from momentumnet.errors import PruningError
from momentumnet.options import check_has_values
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.masking.scores import shuffled_masks
from momentumnet.prune.structured.probing import misfit, outputs_of, unmasked_copy
from momentumnet.streams.blocks.nested import copied


class UnitStructure(ABC):
    """Units of a network that go as a whole, of which masks are seen as one flag for each unit.

    Args:
        model: The network, with masks or without.
        example_inputs: What smaller networks are checked on.
    """

    units: ClassVar[str]  # what they are called

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        check_has_values(model)
        self._inputs = copied(example_inputs)
        plain = unmasked_copy(model)
        self._shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}

    def shuffle(self, masks: Masks, *, generator: torch.Generator | None) -> Masks:
        """Masks that take as many units of each group or stream away, drawn by chance.

        Raises:
            ValueError: ``masks`` do not take away whole units.
        """
        kept = shuffled_masks(self._kept(masks), generator=generator)
        return self._masks(kept, device=next(iter(masks.values())).device)

    def shrink(self, model: nn.Module, masks: Masks) -> nn.Module:
        """A copy of ``model`` without the units that the masks take away, and without masks.

        Channels leave smaller dense layers; in the place of a block stands a `DroppedBlock`. Outputs are compared with
        those of the masked network on the example inputs, in eval mode.

        Args:
            model: The network that the structure was made for, with masks on it or without, trained since or not; on
                the example inputs' device. It stays as it is.
            masks: Masks of this structure.

        Raises:
            ValueError: ``masks`` do not take away whole units, or belong to another network.
            PruningError: The smaller network computes something else.
        """
        kept = self._kept(masks)
        small = unmasked_copy(model)
        if {name: parameter.shape for name, parameter in small.named_parameters()} != self._shapes:
            raise ValueError(
                "the model's parameters are not those that the structure was made for (has it been shrunk already?); "
                f"make a {type(self).__name__} of this model"
            )
        self._silence(small, kept)
        expected = outputs_of(small, self._inputs)
        self._take_out(small, kept)
        reason = misfit(small, self._inputs, expected)
        if reason is not None:
            raise PruningError(
                f"the network without the {self.units} does not compute what the masked one does: {reason}"
            )
        return small

    @abstractmethod
    def _kept(self, masks: Masks) -> Masks:
        """Which units of each group or stream the masks keep; ValueError where they do not take whole ones away."""

    @abstractmethod
    def _masks(self, kept: Masks, *, device: torch.device) -> Masks:
        """The masks that keep these units."""

    @abstractmethod
    def _silence(self, model: nn.Module, kept: Masks) -> None:
        """Set what makes the other units to zero."""

    @abstractmethod
    def _take_out(self, model: nn.Module, kept: Masks) -> None:
        """Take the other units out."""
