"""Pruning whole channels: masks that take them away, and networks that are really smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.errors import PruningError
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.masking.scores import Shares, lowest_masks
from momentumnet.prune.structured.channel_group import ChannelGroup
from momentumnet.prune.structured.group_search import GroupSearch
from momentumnet.prune.structured.layers import Slice
from momentumnet.prune.structured.probing import perturbed_copy, unmasked_copy
from momentumnet.prune.structured.unit_structure import UnitStructure
from momentumnet.prune.structured.units import check_whole, mean_scores


class ChannelStructure(UnitStructure):
    r"""The channels of a network that can go without a change to what other layers see.

    They are found by what the network does on the example inputs (`GroupSearch`): channel c of a layer's output, its
    entries in batch norms on the way, and slice c of what the next layers take. So channels inside residual blocks are
    found, and those of residual streams are not.

    The score of a channel is the mean score of the weights by which it is made,

    .. math::
        s_c = \frac{1}{n_c} \sum_{i : m_{ci}} s_{ci}

    over the n_c weights of filter c that are left, of all producers. With ``magnitude_scores`` this is the L1 norm of
    the filter of Li et al. (*Pruning Filters for Efficient ConvNets*, ICLR 2017, section 3.1) divided by its size, so
    that filters of layers with different numbers of inputs compare.

    Args:
        model: Any module that is not converted, with masks or without. It is left as it was found; a copy is tried
            out.
        example_inputs: As for `momentumnet.find_streams`; a few samples will do. What is shrunk is checked on them.

    Attributes:
        groups: The groups of channels in the order of the model's layers; ``print`` shows their layers.
        refused: Why the channels of other layers are not offered, by the layer's name.

    Raises:
        PruningError: No layer's channels can go; the message says why. Or the model is converted, or returns NaN.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> structure = ChannelStructure(net, torch.zeros(1, 4))
        >>> print(*structure.groups)
        0 -> 2: 8 channels
        >>> scores = {"0.weight": net[0].weight.detach().abs()}
        >>> small = structure.shrink(net, structure.prune(scores, fraction=0.25))
        >>> small[0].out_features, small[2].in_features
        (6, 6)
    """

    units = "channels"

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        super().__init__(model, example_inputs)
        search = GroupSearch(perturbed_copy(model), self._inputs)
        self.groups: list[ChannelGroup] = search.groups
        self.refused: dict[str, str] = search.refused
        if not self.groups:
            reasons = "\n".join(f"  {name or '(root)'}: {reason}" for name, reason in self.refused.items())
            raise PruningError(f"{type(model).__name__} has no channels that can go:\n{reasons or '  no dense layer'}")
        plain = unmasked_copy(model)
        self._slices: dict[str, list[Slice]] = {
            group.name: [part for part in group.slices(plain) if part.name in self._shapes] for group in self.groups
        }

    def prune(
        self,
        scores: Mapping[str, Tensor],
        *,
        fraction: Shares,
        scope: str = "global",
        previous: Masks | None = None,
    ) -> Masks:
        """Masks that take the channels with the lowest scores away.

        Of n channels that ``previous`` keeps go as many as `lowest_masks` counts, floor(fraction n + 1/2); equal scores
        go in the order of the groups, then of the channels. The best channel of each group stays whatever its score;
        in its place goes the next one of all groups (scope "global"). Fewer go only where nothing else is left.

        Args:
            scores: By parameter name, of the weight's shape; those of the groups' producers are read.
            fraction: What goes of the channels that are left; or for each group's name, for ``scope="layer"``.
            scope: "global" compares the channels of all groups, "layer" those of one.
            previous: Masks of this structure; what they take away stays away.

        Returns:
            Masks of every parameter that the groups' channels have entries in, those that `shrink` takes away.

        Raises:
            ValueError: An option has a value that it does not take, scores are missing or of another shape, or
                ``previous`` does not take away whole channels.
        """
        kept = None if previous is None else self._kept(previous)
        values = {group.name: self._scores(group, scores, previous) for group in self.groups}
        best = {}
        for name, value in values.items():
            gone = value.isnan() if kept is None else value.isnan() | ~kept[name]
            best[name] = int(value.masked_fill(gone, -torch.inf).argmax())
            value[best[name]] = torch.inf
        found = lowest_masks(values, fraction=fraction, scope=scope, previous=kept)
        for name, channel in best.items():
            found[name][channel] = True
        return self._masks(found, device=next(iter(scores.values())).device)

    def _silence(self, model: nn.Module, kept: Masks) -> None:
        for group in self.groups:
            group.silence(model, kept[group.name])

    def _take_out(self, model: nn.Module, kept: Masks) -> None:
        for group in self.groups:
            group.shrink(model, kept[group.name])

    def _scores(self, group: ChannelGroup, scores: Mapping[str, Tensor], previous: Masks | None) -> Tensor:
        return mean_scores(_weights(group), scores, previous, self._shapes, units=group.size)

    def _masks(self, kept: Masks, *, device: torch.device) -> Masks:
        masks: Masks = {}
        for group in self.groups:
            for part in self._slices[group.name]:
                shape = self._shapes[part.name]
                along = [-1 if dim == part.dim else 1 for dim in range(len(shape))]
                mask = kept[group.name][part.channels].view(along).expand(shape)
                masks[part.name] = (masks[part.name] & mask) if part.name in masks else mask.clone()
        return {name: mask.to(device) for name, mask in masks.items()}

    def _kept(self, masks: Masks) -> Masks:
        """Which channels of each group masks keep."""
        kept: Masks = {}
        for group in self.groups:
            name = _weights(group)[0]
            if name not in masks or masks[name].shape != self._shapes[name]:
                raise ValueError(f"masks hold none of {name!r}, or one of another shape; pass masks that prune() gave")
            kept[group.name] = masks[name].flatten(1).any(1).cpu()
            if not bool(kept[group.name].any()):
                raise ValueError(f"masks keep no channel of {group.name!r}, which cuts the network; keep one at least")
        check_whole(masks, self._masks(kept, device=torch.device("cpu")), self.units)
        return kept


def _weights(group: ChannelGroup) -> list[str]:
    return [f"{layer}.weight" if layer else "weight" for layer in group.producers]
