"""Pruning whole residual blocks: masks that make them the identity, and networks without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from momentumnet.errors import PruningError
from momentumnet.prune.masking.masks import Masks
from momentumnet.prune.masking.scores import Shares, lowest_masks
from momentumnet.prune.structured.block_search import BlockSearch, replace, silence
from momentumnet.prune.structured.probing import perturbed_copy, unmasked_copy
from momentumnet.prune.structured.unit_structure import UnitStructure
from momentumnet.prune.structured.units import check_whole, mean_scores


class BlockStructure(UnitStructure):
    r"""The residual blocks that can leave a network: those of its streams that are the identity without parameters.

    With all parameters of a block at zero its branch is zero, and x + f(x) is x. Whether that holds is tried out
    (`BlockSearch`); it does not where the block normalises the sum (post-norm transformer layers).

    The score of a block is the mean score of its weights that are left,

    .. math::
        s_b = \frac{1}{n_b} \sum_{i \in b} s_i

    so that blocks of different width compare. That whole layers are scored by the criteria for single filters is the
    method of Elkerdawy, Elhoushi, Singh, Zhang, Ray (*To Filter Prune, or to Layer Prune, That Is the Question*, ACCV
    2020).

    A stream may lose all its blocks; what comes into it then goes on as it is.

    Args:
        model: Any module that is not converted, with masks or without. It is left as it was found; a copy is tried
            out.
        example_inputs: As for `momentumnet.find_streams`; a few samples will do. What is shrunk is checked on them.

    Attributes:
        streams: For each stream's path the names of its blocks that can go; where several streams have one path, in its
            place those of the first and the last block ("features.3 to features.5").
        refused: Why other blocks of the streams cannot, by name.

    Raises:
        PruningError: No block can go; the message says why. Or the model is converted.

    Example:
        >>> import torchvision
        >>> from momentumnet.prune.masking.scores import magnitude_scores
        >>> net = torchvision.models.resnet18()
        >>> structure = BlockStructure(net, torch.rand(1, 3, 32, 32))
        >>> structure.streams
        {'layer1': ('layer1.0', 'layer1.1')}
        >>> masks = structure.prune(magnitude_scores(net), fraction=0.5)
        >>> small = structure.shrink(net, masks)
        >>> sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in small.parameters())
        73984
    """

    units = "blocks"

    def __init__(self, model: nn.Module, example_inputs: Any) -> None:
        super().__init__(model, example_inputs)
        search = BlockSearch(perturbed_copy(model), self._inputs)
        self.streams: dict[str, tuple[str, ...]] = search.streams
        self.refused: dict[str, str] = search.refused
        if not self.streams:
            reasons = "\n".join(f"  {name}: {reason}" for name, reason in self.refused.items())
            raise PruningError(
                f"{type(model).__name__} has no residual block that can go:\n{reasons or '  it has no residual stream'}"
            )
        self._stand_ins = search.stand_ins
        plain = unmasked_copy(model)
        names = {parameter: name for name, parameter in plain.named_parameters()}
        self._parameters = {
            block: [names[parameter] for parameter in plain.get_submodule(block).parameters()]
            for blocks in self.streams.values()
            for block in blocks
        }

    def prune(
        self,
        scores: Mapping[str, Tensor],
        *,
        fraction: Shares,
        scope: str = "global",
        previous: Masks | None = None,
    ) -> Masks:
        """Masks that take the blocks with the lowest scores away, as many as `lowest_masks` counts.

        Args:
            scores: By parameter name, of the parameter's shape; those of the blocks' parameters are read.
            fraction: What goes of the blocks that are left; or for each of ``streams``, for ``scope="layer"``.
            scope: "global" compares the blocks of all streams, "layer" those of one.
            previous: Masks of this structure; what they take away stays away.

        Returns:
            Masks of all parameters of all blocks in ``streams``.

        Raises:
            ValueError: An option has a value that it does not take, scores are missing or of another shape, or
                ``previous`` does not take away whole blocks.
        """
        kept = None if previous is None else self._kept(previous)
        values = {
            path: torch.cat([self._score(block, scores, previous) for block in blocks])
            for path, blocks in self.streams.items()
        }
        found = lowest_masks(values, fraction=fraction, scope=scope, previous=kept)
        return self._masks(found, device=next(iter(scores.values())).device)

    def _silence(self, model: nn.Module, kept: Masks) -> None:
        silence(model, self._away(kept))

    def _take_out(self, model: nn.Module, kept: Masks) -> None:
        replace(model, {block: copy.deepcopy(self._stand_ins[block]) for block in self._away(kept)})

    def _away(self, kept: Masks) -> list[str]:
        return [
            block
            for path, blocks in self.streams.items()
            for block, stays in zip(blocks, kept[path].tolist(), strict=True)
            if not stays
        ]

    def _score(self, block: str, scores: Mapping[str, Tensor], previous: Masks | None) -> Tensor:
        names = [name for name in self._parameters[block] if name in scores]
        if not names:
            raise ValueError(f"scores hold none of block {block!r}; pass those of magnitude_scores(model)")
        return mean_scores(names, scores, previous, self._shapes, units=1)

    def _masks(self, kept: Masks, *, device: torch.device) -> Masks:
        return {
            name: torch.full(self._shapes[name], stays, device=device)
            for path, blocks in self.streams.items()
            for block, stays in zip(blocks, kept[path].tolist(), strict=True)
            for name in self._parameters[block]
        }

    def _kept(self, masks: Masks) -> Masks:
        """Which blocks of each stream masks keep."""
        first = {block: masks.get(names[0]) for block, names in self._parameters.items()}
        kept = {
            path: torch.tensor([mask is None or bool(mask.any()) for mask in map(first.get, blocks)])
            for path, blocks in self.streams.items()
        }
        check_whole(masks, self._masks(kept, device=torch.device("cpu")), self.units)
        return kept
