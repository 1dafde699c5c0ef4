"""Sharpness-aware minimisation: step with the gradient at the worst point near the parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from momentumnet.optim.displacement import Displacement, norms_of
from momentumnet.optim.two_step import TwoStepOptimizer
from momentumnet.options import is_finite, true_or_false, whole
from momentumnet.streams.blocks.block import ResidualStream


class SAM(TwoStepOptimizer):
    r"""Sharpness-aware minimisation (Foret et al., ICLR 2021), and adaptive SAM (Kwon et al., ICML 2021).

    .. math::
        e = \rho \frac{T^2 g(w)}{\lVert T g(w) \rVert_2}, \qquad w \leftarrow \mathrm{base}(w, g(w + e))

    (Foret et al., equations 2 and 3) with T = 1, or for ``adaptive`` T = abs(w) + eta by element (Kwon et al.). The
    norm is taken over all parameters that are perturbed: those with a gradient, in groups with ``rho > 0``. A group
    may have ``rho``, ``adaptive`` and ``eta`` of its own (Kwon et al. leave biases at T = 1). A gradient of norm zero
    perturbs nothing, and neither does one that is not finite.

    Parameters come back bit for bit after the perturbation, because their values are kept: one extra copy of the
    parameters between the passes (of sparse gradients' rows only). Running statistics of norms change in the first pass
    only. Parameters without a gradient in the first pass are not moved.

    Args:
        params: Parameters or groups, as for any optimizer.
        base_optimizer: A class (or function) that makes it from ``params``, or an optimizer of these ``params``.
        rho: Radius of the perturbation.
        adaptive: Adaptive SAM; use a ``rho`` about ten times larger.
        eta: Added to abs(w) for ``adaptive``, so that small weights move too.
        blocks: Perturb one part of the network at a time, in turn, one each step: `ResidualStream` of ``model``
            (from `find_streams`) or lists of parameters. The extra copy is then that of the largest part.
            Parameters in none of the blocks are never perturbed.
        model: The network, wrapped as it is trained. Without it, norms are found as modules are called in the second
            pass, by a hook on all modules, for which `torch.compile` warns and compiles again. Needed for ``local``,
            for streams in ``blocks``, and for parameters of a `FullyShardedDataParallel` (FSDP1).
        same_random: In `step`, the second pass draws the same random numbers as the first (dropout masks).
        local: In `step` and `step_chunks`, each process of a `DistributedDataParallel` ``model`` perturbs by its own
            gradient (m-sharpness, Foret et al., section 4.1); otherwise all perturb alike by the averaged one.
        base_options: Options for the base optimizer's class.

    Raises:
        ValueError: An option cannot be, or the base optimizer does not fit.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(2, 4)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., Optimizer] | Optimizer,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        blocks: Sequence[ResidualStream | Iterable[Tensor]] | None = None,
        model: nn.Module | None = None,
        same_random: bool = False,
        local: bool = False,
        **base_options: Any,
    ) -> None:
        options = {"rho": rho, "adaptive": adaptive, "eta": eta}
        if blocks is not None:
            options["turn"] = 0  # in the groups, so that it is in the state dict
        super().__init__(
            params, base_optimizer, options, base_options, model=model, same_random=same_random, local=local
        )
        self._blocks = None if blocks is None else self._resolve(blocks)

    def step_chunks(self, loss_fn: Callable[..., Tensor], *batch: Tensor, m: int) -> Tensor:
        r"""One step of m-sharpness on one device: each chunk of ``m`` samples has its gradient at its own ``w + e``.

        .. math::
            w \leftarrow \mathrm{base}\Big(w, \sum_c \tfrac{m_c}{n} \, g_c(w + e_c)\Big)

        (Foret et al., section 4.1). Costs two passes over the batch in chunks, and a sum of gradients beside the
        copy of the parameters.

        Args:
            loss_fn: ``loss_fn(*chunk)`` runs the forward pass and returns the mean loss of a chunk; called twice.
            batch: Tensors with the samples in their first dimension, n of them.
            m: Samples in a chunk; the last one may be smaller.

        Returns:
            The mean loss of the batch in the first passes.

        Raises:
            ValueError: ``m`` is no whole number of at least one, or the tensors do not have one and the same number
                of samples.
            StepOrderError: Called between `first_step` and `second_step`.

        Example:
            >>> model = nn.Linear(4, 1)
            >>> sam = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
            >>> loss = sam.step_chunks(lambda x: model(x).square().mean(), torch.ones(6, 4), m=2)
        """
        self._refuse_midway("step_chunks")
        count = _samples(batch, m)
        mean_loss = torch.zeros(())
        gradients: dict[Tensor, Tensor] = {}
        for chunk in zip(*(tensor.split(m) for tensor in batch), strict=True):
            share = len(chunk[0]) / count
            mean_loss = mean_loss + share * self._chunk(loss_fn, chunk, share)
            for parameter, gradient in self._gradients():
                # A copy: it may be a view of a buffer of DistributedDataParallel, which the next pass overwrites.
                gradients[parameter] = gradients[parameter] + gradient if parameter in gradients else gradient.clone()
        self.zero_grad()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        self._base_step()
        return mean_loss

    def _chunk(self, loss_fn: Callable[..., Tensor], chunk: tuple[Tensor, ...], share: float) -> Tensor:
        """Leave the gradient of a chunk at its own perturbation, times its share, and return its loss."""

        def backward(factor: float) -> Tensor:
            loss = loss_fn(*chunk)
            (loss * factor).backward()
            return loss.detach()

        self.zero_grad()
        loss = self._two_passes(lambda: backward(1.0), lambda: backward(share))
        self.restore()
        return loss

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        return [(p, p.grad) for p in self._parameters() if p.grad is not None]

    def _check_group(self, group: dict[str, Any]) -> None:
        true_or_false(adaptive=group["adaptive"])
        group["adaptive"] = bool(group["adaptive"])
        for name in ("rho", "eta"):
            if not (isinstance(group[name], Real) and is_finite(group[name]) and group[name] >= 0):
                raise ValueError(f"{name} must be a finite number, 0 or larger, got {group[name]!r}")
            group[name] = float(group[name])  # as state dicts are loaded, and as PyTorch's operations take it

    def _resolve(self, blocks: Sequence[ResidualStream | Iterable[Tensor]]) -> list[list[Tensor]]:
        mine = set(self._parameters())
        resolved = []
        for number, block in enumerate(blocks):
            if isinstance(block, ResidualStream):
                parameters = [p for p in self._parameters_of(block) if p in mine]
            else:
                parameters = list(block)
            if not parameters or not mine.issuperset(parameters):
                raise ValueError(f"blocks[{number}] must hold parameters of this optimizer, and nothing else")
            resolved.append(parameters)
        if not resolved:
            raise ValueError("blocks is empty: nothing would ever be perturbed; pass None to perturb everything")
        return resolved

    def _parameters_of(self, stream: ResidualStream) -> list[Tensor]:
        if self._model is None:
            raise ValueError("streams in blocks need model=, the network that they were found in")
        network = self._model.module if isinstance(self._model, DistributedDataParallel) else self._model
        # A block that is called several times stands several times.
        return [p for name in dict.fromkeys(stream.blocks) for p in network.get_submodule(name).parameters()]

    def _moving(self, group: dict[str, Any]) -> list[Tensor]:
        if group["rho"] == 0:
            return []
        if self._blocks is None:
            return super()._moving(group)
        turn = self.param_groups[0]["turn"] % len(self._blocks)
        block = set(self._blocks[turn])
        return [parameter for parameter in group["params"] if parameter in block]

    def _advance(self) -> None:
        if self._blocks is not None:
            for group in self.param_groups:
                group["turn"] += 1

    def _displace(self, moves: list[Displacement]) -> bool:
        total = self._total_norm(moves, _norms)
        for move in moves:
            if 0 < total < math.inf:
                _climb(move, move.group["rho"] / total)
            else:  # also from where the norm of an adaptive group was computed in place
                move.reset()
        return math.isfinite(total)


def _samples(batch: tuple[Tensor, ...], m: int) -> int:
    whole("m", m)
    counts = {len(tensor) for tensor in batch}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"batch must be tensors with the same number of samples, got {sorted(counts)}")
    return counts.pop()


def _norms(move: Displacement) -> Sequence[Tensor]:
    """The norm of T g for each point. Adaptive, in float32 and above: in the points' memory, which holds T g then."""
    if not move.group["adaptive"]:
        return norms_of(move.gradients)
    if _is_half(move):
        pairs = zip(move.origins, move.gradients, strict=True)
        return [torch.linalg.vector_norm(_scale(move, w).mul_(g)) for w, g in pairs]
    torch._foreach_abs_(move.points)
    torch._foreach_add_(move.points, move.group["eta"])
    torch._foreach_mul_(move.points, move.gradients)
    return norms_of(move.points)


def _climb(move: Displacement, factor: float) -> None:
    """points = origins + factor T^2 g, in the memory of the points."""
    if move.group.get("maximize", False):
        factor = -factor
    if _is_half(move):
        _climb_in_float(move, factor)
        return
    if not move.group["adaptive"]:
        torch._foreach_add_(move.points, move.gradients, alpha=factor)
        return
    move.reset()
    torch._foreach_abs_(move.points)
    torch._foreach_add_(move.points, move.group["eta"])
    torch._foreach_mul_(move.points, move.points)
    torch._foreach_mul_(move.points, move.gradients)
    torch._foreach_mul_(move.points, factor)
    torch._foreach_add_(move.points, move.origins)


def _climb_in_float(move: Displacement, factor: float) -> None:
    """The same in float32, a tensor at a time, and rounded once: float16 holds neither the factor nor T^2 g."""
    for point, origin, gradient in zip(move.points, move.origins, move.gradients, strict=True):
        step = gradient.float().mul_(factor)
        if move.group["adaptive"]:
            step.mul_(_scale(move, origin).square_())
        point.copy_(step.add_(origin))


def _scale(move: Displacement, weight: Tensor) -> Tensor:
    """T of adaptive SAM, a new tensor in float32."""
    return weight.float().abs_().add_(move.group["eta"])


def _is_half(move: Displacement) -> bool:
    return move.points[0].dtype.itemsize < 4
