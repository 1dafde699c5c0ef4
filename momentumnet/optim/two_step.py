"""What optimizers share that evaluate the gradient twice: at the parameters, and at a point that it leads to."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from momentumnet.errors import StepOrderError
from momentumnet.optim.accumulated import told_if_accumulated
from momentumnet.optim.base import base_optimizer_of
from momentumnet.optim.delegation import DelegatingOptimizer
from momentumnet.optim.displacement import Displacement, displacements, norms_of, total_norm
from momentumnet.optim.passes import RunningStatistics
from momentumnet.optim.shards import sharing_processes, total_norm_over
from momentumnet.options import true_or_false
from momentumnet.parameter_parts import is_flattened
from momentumnet.recompute.surroundings.generators import Generators


class TwoStepOptimizer(DelegatingOptimizer):
    """A base optimizer that steps from ``w`` with the gradient taken at another point, ``w~ = w + e(w, g(w))``.

    Args:
        params: Parameters or groups, as for any optimizer.
        base_optimizer: A class (or function) that makes it from ``params``, or an optimizer of these ``params``.
        own_options: Options of the subclass that stand in each parameter group.
        base_options: Options for the base optimizer's class.
        model: See `momentumnet.optim.SAM`; so are ``same_random`` and ``local``.
        same_random: The second pass of `step` draws the random numbers of the first.
        local: The first pass of `step` runs in ``model.no_sync()``.

    Raises:
        ValueError: An option cannot be, the base optimizer does not fit, ``local`` without a
            `DistributedDataParallel` model, or parameters of a `FullyShardedDataParallel` without it as ``model``.
    """

    evaluates_twice = True

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer] | Optimizer,
        own_options: dict[str, Any],
        base_options: dict[str, Any],
        *,
        model: nn.Module | None = None,
        same_random: bool = False,
        local: bool = False,
    ) -> None:
        true_or_false(same_random=same_random, local=local)
        if model is not None and not isinstance(model, nn.Module):
            raise ValueError(f"model must be the network, an nn.Module, or None, got {type(model).__name__}")
        if local and not isinstance(model, DistributedDataParallel):
            raise ValueError(f"local=True needs model=, the DistributedDataParallel module; got {type(model).__name__}")
        super().__init__(base_optimizer_of(params, base_optimizer, own_options, base_options), own_options)
        self._model = model
        self._same_random = same_random
        self._local = local
        self._displaced: list[Displacement] | None = None
        self._statistics: RunningStatistics | None = None
        self._finite = True
        self._overflow_hooks: list[RemovableHandle] = []
        for group in self.param_groups:
            self._check_group(group)
        self._processes()  # or says what it needs

    @abstractmethod
    def _displace(self, moves: list[Displacement]) -> bool:
        """Move every point from its origin, in place; False, and all points at their origins, if that is not finite."""

    def _total_norm(self, moves: list[Displacement], norms: Callable[[Displacement], Sequence[Tensor]]) -> float:
        """The 2-norm over all points, also where several processes hold parts of the parameters."""
        return total_norm_over(self._processes(), moves, norms)

    def _processes(self) -> dist.ProcessGroup | None:
        """Those among which the parameters are divided, also of groups that have come since; None: each holds all."""
        return self._processes_of_model if any(map(is_flattened, self._parameters())) else None

    @cached_property
    def _processes_of_model(self) -> dist.ProcessGroup | None:
        return sharing_processes(self._model)

    def _moving(self, group: dict[str, Any]) -> list[Tensor]:
        """The parameters of a group that are to be moved in this step, with or without a gradient."""
        return list(group["params"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of two passes: ``closure`` at ``w``, again at ``w~``, then the base optimizer's step from ``w``.

        Args:
            closure: Does zero_grad, forward and backward (several, to accumulate) and returns the loss. Called twice;
                gradients are set to None in between.

        Returns:
            The loss of the first pass.

        Raises:
            ValueError: there is no closure, and more is to be made than the state (see `_begins_state`).
            StepOrderError: `first_step` was called and `second_step` was not.
        """
        if closure is None:
            if self._begins_state():
                return self.base_optimizer.step()
            raise ValueError(
                f"{type(self).__name__}.step needs a closure (zero_grad, forward, backward; returns the loss) and "
                "calls it twice; a loop that calls backward itself uses first_step() and second_step()"
            )
        self._refuse_midway("step")

        def first() -> Any:
            with told_if_accumulated(type(self).__name__, self._parameters()):
                return closure()

        loss = self._two_passes(first, closure)
        self.second_step()
        return loss

    def first_step(self) -> bool:
        """Go to ``w~``, with the gradients of the first pass.

        Returns:
            False if these gradients are not finite: the parameters stay at ``w`` then.

        Raises:
            StepOrderError: Called twice without `second_step` or `restore` between.
            ValueError: The optimizer was made with ``same_random`` or ``local``, which a loop of your own has to do.
        """
        self._refuse_midway("first_step")
        if self._same_random or self._local:
            raise ValueError(
                "same_random and local are done by step(closure); in a loop of your own put the generators back with "
                "torch.set_rng_state, run the first pass in ddp.no_sync(), and leave both options out"
            )
        self._begin()
        if not self._finite and self._joins:
            self._overflow_hooks = [p.register_hook(_no_number) for p in self._parameters() if p.requires_grad]
        return self._finite

    def second_step(self, scaler: GradScaler | None = None) -> None:
        """Go back to ``w``, bit for bit, and step with the gradients of the second pass.

        Args:
            scaler: Makes the step of the base optimizer: unscales (unless ``scaler.unscale_(self.base_optimizer)`` was
                called), and skips the step where either pass was not finite.

        Raises:
            StepOrderError: `first_step` was not called before.
        """
        if self._displaced is None:
            raise StepOrderError("second_step without first_step; call first_step() after the first backward pass")
        self.restore()
        self._base_step(scaler)

    def restore(self) -> None:
        """Go back to ``w``, bit for bit, without a step: gives a second pass up. At rest it does nothing."""
        if self._displaced is not None:
            with torch.no_grad():
                for move in self._displaced:
                    move.put_back()
            self._displaced = None
        while self._overflow_hooks:
            self._overflow_hooks.pop().remove()
        if self._statistics is not None:
            self._statistics.put_back()
            self._statistics = None

    def _advance(self) -> None:
        """Called after each step."""

    def _begins_state(self) -> bool:
        """Whether a step without a closure can only begin the state, into which a checkpoint is loaded then.

        `torch.distributed.checkpoint.state_dict` makes that step, at gradients of zero and no learning rate. Nothing
        is perturbed or moved there, so it is the base optimizer's.
        """
        if self.state or any(float(group.get("lr") or 0) for group in self.param_groups):
            return False
        gradients = [move.gradients for group in self.param_groups for move in displacements(group, group["params"])]
        return bool(gradients) and total_norm([norm for some in gradients for norm in norms_of(some)]) == 0

    def _two_passes(self, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        """Call ``first`` at ``w`` and ``second`` at ``w~``, and stay there; return what ``first`` returned.

        If ``second`` raises anything, an interrupt included, the parameters are back at ``w``.
        """
        devices = {p.device for p in self._parameters()} if self._same_random else ()
        generators = [Generators(device) for device in devices]
        with torch.enable_grad(), self._unsynchronised():
            result = first()
        self._begin()
        try:
            self.zero_grad()
            for generator in generators:
                generator.set()
            with torch.enable_grad():
                second()
        except BaseException:
            self.restore()
            raise
        return result

    def _unsynchronised(self) -> AbstractContextManager[None]:
        if self._local and isinstance(self._model, DistributedDataParallel):
            return self._model.no_sync()
        return nullcontext()

    def _base_step(self, scaler: GradScaler | None = None) -> None:
        if scaler is None or not scaler.is_enabled():
            self.base_optimizer.step()
        elif self._finite_everywhere():
            scaler.step(self.base_optimizer)
        else:
            self._tell_of_overflow(scaler)
        self._opt_called = True  # private: by it schedulers tell that there was a step, and warn if there was none
        self._advance()

    @property
    def _joins(self) -> bool:
        """Whether processes of ``model`` may have come to their end (``join``), and shadow its own collectives alone.

        There an overflow in a first pass, of which the others know nothing in ``no_sync``, goes with the gradients of
        the second one, which are made no numbers.
        """
        return isinstance(self._model, DistributedDataParallel) and self._model._join_config.enable  # no public way

    def _finite_everywhere(self) -> bool:
        """Whether no process has met an overflow in its first pass, of which the others know nothing in ``no_sync``."""
        if not isinstance(self._model, DistributedDataParallel) or self._joins:
            return self._finite
        finite = torch.tensor(float(self._finite), device=next(self._parameters()).device)
        dist.all_reduce(finite, dist.ReduceOp.MIN, self._model.process_group)
        return bool(finite)

    @torch.no_grad()
    def _tell_of_overflow(self, scaler: GradScaler) -> None:
        """Of the first pass, which the scaler has not seen unless it has unscaled it: by gradients that are no use."""
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(math.inf)
        with suppress(RuntimeError):  # it has unscaled them already, and then it knows of this optimizer
            scaler.unscale_(self.base_optimizer)

    def _parameters(self) -> Iterator[Tensor]:
        return (parameter for group in self.param_groups for parameter in group["params"])

    @torch.no_grad()
    def _begin(self) -> None:
        moves = [move for group in self.param_groups for move in displacements(group, self._moving(group))]
        for move in moves:
            move.keep()
        self._displaced = moves
        self._finite = self._displace(moves)
        for move in moves:
            move.write()
            move.gradients = []  # whoever drops the parameters' gradients now frees them
        self._statistics = RunningStatistics(self._model)

    def _refuse_midway(self, what: str) -> None:
        if self._displaced is not None:
            raise StepOrderError(
                f"{what} between first_step and second_step, while the parameters are perturbed; call second_step() "
                "after the second backward pass, or restore() to give it up"
            )

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_midway("copying or pickling")
        # What Optimizer and schedulers put on the instance (hooks, a wrapped step) stays behind, as for any optimizer.
        return {name: value for name, value in self.__dict__.items() if name in _LASTING}


_LASTING = (
    *("defaults", "base_optimizer", "_own_options", "_own_by_group", "_model", "_same_random", "_local", "_blocks"),
    *("_displaced", "_statistics", "_finite", "_overflow_hooks"),
)


def _no_number(gradient: Tensor) -> Tensor:
    return gradient * math.inf
