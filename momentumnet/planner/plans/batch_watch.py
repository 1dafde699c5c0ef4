"""Training keeps to its plan: calls with more than the example that was planned for, and other bytes of parameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from momentumnet.core.passes.collectives import processes
from momentumnet.core.tensors.transforms import at_work
from momentumnet.memory import format_bytes
from momentumnet.planner.plans.parameter_bytes import WatchedParameters
from momentumnet.streams.blocks.averaging import check_averaged, is_averaging
from momentumnet.streams.blocks.converted import is_laid_aside
from momentumnet.streams.blocks.nested import tensors_in

logger = logging.getLogger("momentumnet")

# Plans the model again for these arguments, and converts it accordingly.
Again = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


class BatchWatch:
    """A forward pre-hook of a planned model, which counts the elements of its input tensors.

    Args:
        planned: how many the example had.
        budget: bytes that the step was planned for; None for the least.
        again: for larger calls; None: a line in the log says what to do.
        autocast: as in `TrainingPlan`.
        training: as in `TrainingPlan`.
    """

    def __init__(
        self,
        planned: int,
        budget: int | None,
        again: Again | None,
        autocast: str | None = None,
        training: bool | None = None,
    ) -> None:
        self._planned, self._budget, self._again = planned, budget, again
        self._noticed, self._autocast, self._training = planned, autocast, training
        self._parameters = WatchedParameters()

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at a call that is about to be made; those without gradients keep nothing, and a trace is no step.

        Nor is a call under a transform, which keeps all activations, and in which nothing can be measured.
        """
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or is_laid_aside() or at_work() is not None:
            return
        if is_averaging():  # also where all is stored, so that no block looks
            check_averaged(type(model).__name__, model)
        self._look_at_autocast(model, (args, kwargs))
        is_larger, trains = self._is_larger((args, kwargs)), self._begins_to_train(model)
        changes = self._parameters.changes(model)
        if not (is_larger or trains or changes):
            return
        if self._again is not None and processes() == 1:
            logger.info(
                "planning again: %d elements come in%s, %d were planned for%s%s",
                self._noticed,
                " in training mode" if trains else "",
                self._planned,
                " in eval mode" if trains else "",
                "".join(f"; {change}" for change in changes),
            )
            self._again(model, args, kwargs)
            return
        if is_larger:
            self._tell(model)
        if trains:
            self._tell_of_mode(model)
        if changes:
            self.tell_of_another(model, changes)

    def look(self, model: nn.Module, inputs: Any) -> None:
        """Look at example inputs, as at those of a call; they are not planned for again."""
        if self._is_larger(inputs):
            self._tell(model)

    def tell_of_another(self, model: nn.Module, differences: Sequence[str]) -> None:
        """Tell of a model that is not the one of the plan."""
        logger.warning(
            "%s follows a plan that was made for another model: %s. The step takes other bytes than %s; plan again "
            "(momentumnet.plan) with this model",
            type(model).__name__,
            "; ".join(differences),
            self._room,
        )

    def _look_at_autocast(self, model: nn.Module, inputs: Any) -> None:
        """Tell, once, of a step that autocasts to another type than planned, or does in place of not, or does not."""
        given = next(iter(tensors_in(inputs)), None)
        if self._autocast is None or given is None:
            return
        planned, found = self._autocast, autocast_of(given.device)
        if found not in (None, planned):
            self._autocast = None
            logger.warning(
                "%s was planned under autocast to %s and runs under autocast to %s ('none': without): activations are "
                "of other types, and the step takes other bytes than %s. Plan (momentumnet.plan) as it is trained",
                type(model).__name__,
                planned,
                found,
                self._room,
            )

    def tell_of_masks(self, model: nn.Module) -> None:
        """Tell of masks that are put on a model behind its plan: each use of a weight makes a copy of it."""
        logger.warning(
            "masks are put on %s, which was planned without them: each use of a masked weight makes a copy of it, and "
            "the step takes more than %s. Plan (momentumnet.plan) behind apply_masks",
            type(model).__name__,
            self._room,
        )

    def attach(self, model: nn.Module) -> None:
        """Watch the calls of a model."""
        self._parameters.look(model)
        model.register_forward_pre_hook(self, with_kwargs=True)

    def _is_larger(self, inputs: Any) -> bool:
        """Whether there are more elements than ever before."""
        elements = elements_of(inputs)
        larger = elements > self._noticed
        self._noticed = max(elements, self._noticed)
        return larger

    def _begins_to_train(self, model: nn.Module) -> bool:
        """Whether it is in training mode for the first time, and was planned in eval mode."""
        begins = self._training is False and model.training
        if begins:
            self._training = True
        return begins

    @property
    def _room(self) -> str:
        return "the least that was planned" if self._budget is None else f"the {format_bytes(self._budget)} planned"

    def _tell(self, model: nn.Module) -> None:
        logger.warning(
            "%s was planned for inputs of %d elements and is given %d: the step takes more than %s. %s",
            type(model).__name__,
            self._planned,
            self._noticed,
            self._room,
            "Plan again for the largest batch (momentumnet.plan), or let it be done (convert(..., replan='auto'))"
            if self._again is None
            else "In several processes it is not planned again, as all have to recompute alike: plan for this batch",
        )

    def _tell_of_mode(self, model: nn.Module) -> None:
        logger.warning(
            "%s was planned in eval mode and is in training mode now, where dropout keeps masks and norms measure the "
            "batch: the step may take more than %s. Call train() before it is planned, as from_pretrained of "
            "transformers leaves models in eval mode",
            type(model).__name__,
            self._room,
        )


def detach(model: nn.Module) -> None:
    """Watch no module in the model any more."""
    for module, number, _ in list(watches_in(model)):
        del module._forward_pre_hooks[number]
        module._forward_pre_hooks_with_kwargs.pop(number, None)


def watches_in(model: nn.Module) -> Iterator[tuple[nn.Module, int, BatchWatch]]:
    """The planned modules in the model, each with its watch and that hook's number."""
    for module in model.modules():
        for number, hook in module._forward_pre_hooks.items():
            if isinstance(hook, BatchWatch):
                yield module, number, hook


def elements_of(inputs: Any) -> int:
    """Elements of all tensors among the arguments of a call."""
    return sum(tensor.numel() for tensor in tensors_in(inputs))


def autocast_of(device: torch.device) -> str | None:
    """The type to which a device's autocast casts now, by its name; "none" without; None where it has no autocast."""
    if not torch.amp.is_autocast_available(device.type):
        return None
    if not torch.is_autocast_enabled(device.type):
        return "none"
    return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
