"""Dr2Net's coefficients over the steps of a training: from those that keep a function to those wanted at the end.

What is known of the authors' rule, and what is done here: Zhao et al. (CVPR 2024, arXiv 2401.04105) start fine-tuning
at alpha = 1 and beta near 0, where Dr2Net is nearly the pretrained network, and move alpha down and beta up, step by
step ("dynamic finetuning"), to a pair at which the inverse in floats is precise enough. How large each of their updates
is and how often one is made is not known here: their repository (github.com/coolbay/Dr2Net) holds no code, and that of
co-authors (OpenTAD) the method before it alone. So the change here is in the optimizer's steps, over as many as are
asked for and in a shape that is asked for: their coefficients, not their rule.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet import couplings
from momentumnet.arithmetic.fixed_point import MAX_DENOMINATOR
from momentumnet.core.passes.coupled_stream import CoupledStream
from momentumnet.core.rules.dr2net import Dr2Net
from momentumnet.description import model_config
from momentumnet.errors import ConversionError
from momentumnet.schedules.step_schedule import StepSchedule, fraction_at, fraction_between
from momentumnet.streams.blocks.converted import streams_of


def set_dr2net(model: nn.Module, coupling: Dr2Net) -> None:
    """Change the coefficients of every stream that moves by Dr2Net, from the next forward on.

    A backward that is still to come belongs to the forward before, and keeps its coefficients. What was recorded in a
    CUDA graph keeps them, too: record it anew. `momentumnet.schedule_dr2net` changes them step by step.

    Args:
        model: a model that was converted with ``coupling=Dr2Net(...)`` or ``"dr2net"``, wrapped or not.
        coupling: the coefficients of now.

    Raises:
        ConversionError: the model holds no stream that moves by Dr2Net.
        TypeError: ``coupling`` is no `Dr2Net`.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> converted = mn.convert(model, torch.randn(2, 5, 16), coupling="dr2net")
        >>> mn.set_dr2net(converted, mn.Dr2Net(alpha=0.5, beta=0.5))
        >>> mn.describe(converted)["streams"][0]["coupling"]
        {'name': 'dr2net', 'alpha': '1/2', 'beta': '1/2'}
    """
    if type(coupling) is not Dr2Net:  # a subclass could not be described
        raise TypeError(f"expected a momentumnet.Dr2Net, got {coupling!r} of type {type(coupling).__name__}")
    for stream in _streams(model):
        stream.set_rule(coupling)
    model_config.renew(model)


def schedule_dr2net(
    model: nn.Module, optimizer_steps: int, start: Dr2Net, end: Dr2Net, *, shape: str = "linear"
) -> Dr2NetSchedule:
    """Change Dr2Net's coefficients over the steps of a training; call ``step()`` behind the optimizer's.

    Training step t = 0, 1, ... runs at ``schedule.at(t)``: ``start`` for t = 0, exactly ``end`` from t = T =
    ``optimizer_steps`` on, and between them

        beta_t = beta_0 + c (beta_T - beta_0)        alpha_t = s_0 + c (s_T - s_0) - beta_t

    s being alpha + beta, and c, in [0, 1], the share of the way that is covered: t / T with the shape "linear". So
    the pair moves on the straight line between its ends, and the shape says how fast. beta is the nearest fraction
    with a short store, as gamma is in `momentumnet.schedule_gamma`, and alpha, that of the sum behind it, the nearest
    n/d with d <= 128: where alpha + beta is 1 at both ends, and values do not grow with depth, it is 1 in every step.

    The method is that of Dr2Net (Zhao et al., CVPR 2024), which moves alpha down from 1 and beta up from about 0 while
    it fine-tunes. No shape is claimed to be the authors' rule: the size and frequency of their updates are not known
    here.

    Args:
        model: a model that was converted with ``coupling=Dr2Net(...)`` or ``"dr2net"``, wrapped or not. Its
            coefficients become those of step 0. A copy that is made of it keeps those that it has then.
        optimizer_steps: calls of ``step()`` until the coefficients are those of ``end``.
        start: coefficients of the first step; ``Dr2Net()``, 1 and 1/64, nearly keeps a pretrained network's function.
        end: those at the end.
        shape: "linear", "cosine", or "geometric": beta's bits a block, log2(1/beta), change linearly then, and alpha is
            as far on its way as beta is (linearly, where beta stays).

    Returns:
        The schedule, with ``step``, ``coupling``, ``at``, ``state_dict`` and ``load_state_dict``.

    Raises:
        ConversionError: the model holds no stream that moves by Dr2Net.
        TypeError: an end is no `Dr2Net`.
        ValueError: there is no such shape, or ``optimizer_steps`` is no positive integer.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> converted = mn.convert(model, torch.randn(2, 5, 16), coupling="dr2net")
        >>> schedule = mn.schedule_dr2net(converted, 2, mn.Dr2Net(alpha=7/8, beta=1/8), mn.Dr2Net(alpha=1/4, beta=3/4))
        >>> for _ in range(3):
        ...     print(schedule.coupling)  # forward, backward and optimizer.step() stand here
        ...     schedule.step()
        Dr2Net(alpha=7/8, beta=1/8)
        Dr2Net(alpha=9/16, beta=7/16)
        Dr2Net(alpha=1/4, beta=3/4)

    References:
        Zhao, Liu, Mangalam, Qian, Zohra, Alghannam, Malik, Ghanem: Dr2Net: Dynamic Reversible Dual-Residual Networks
        for Memory-Efficient Finetuning, CVPR 2024, arXiv 2401.04105.
    """
    return Dr2NetSchedule(model, optimizer_steps, start, end, shape=shape)


class Dr2NetSchedule(StepSchedule):
    """Dr2Net's coefficients over the steps of a training; `schedule_dr2net` makes one, and says what its arguments are.

    Attributes:
        model: whose coefficients are changed.
        start: coefficients of the first step.
        end: coefficients after ``optimizer_steps``.
        optimizer_steps: steps from one to the other.
        shape: of the way between.
        steps_done: where the schedule stands.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> converted = mn.convert(model, torch.randn(2, 5, 16), coupling="dr2net")
        >>> schedule = mn.Dr2NetSchedule(converted, 8, mn.Dr2Net(), mn.Dr2Net(alpha=1/2, beta=1/2))
        >>> schedule.at(8)
        Dr2Net(alpha=1/2, beta=1/2)
    """

    _name = "Dr2Net"

    def __init__(
        self, model: nn.Module, optimizer_steps: int, start: Dr2Net, end: Dr2Net, *, shape: str = "linear"
    ) -> None:
        super().__init__(model, optimizer_steps, shape)
        for coupling in (start, end):
            if type(coupling) is not Dr2Net:
                raise TypeError(f"start and end must be a momentumnet.Dr2Net each, got {coupling!r}")
        self.start, self.end = start, end
        self._set_rule()

    @property
    def coupling(self) -> Dr2Net:
        """That of the model now."""
        return self.at(self.steps_done)

    def at(self, step: int) -> Dr2Net:
        """The coefficients in training step ``step``, counted from 0."""
        if step >= self.optimizer_steps:
            return self.end
        if step <= 0:
            return self.start
        one, other = self.start, self.end
        covered = self._covered(one.beta, other.beta, step)
        beta = fraction_between(one.beta, other.beta, float(fraction_at(one.beta, other.beta, covered)))
        together = fraction_at(one.alpha + one.beta, other.alpha + other.beta, covered)
        alpha = (together - beta).limit_denominator(MAX_DENOMINATOR)
        return Dr2Net(alpha=min(max(alpha, Fraction(0)), Fraction(1)), beta=beta)

    def _what_it_is(self) -> dict[str, Any]:
        ends = {"start": couplings.describe(self.start), "end": couplings.describe(self.end)}
        return {"optimizer_steps": self.optimizer_steps, **ends, "shape": self.shape}

    def _set_rule(self) -> None:
        set_dr2net(self.model, self.coupling)


def _streams(model: nn.Module) -> list[CoupledStream]:
    """The streams that move by Dr2Net."""
    found = streams_of(model)
    streams = [stream for stream in found if isinstance(stream, CoupledStream) and isinstance(stream.rule, Dr2Net)]
    if not streams:
        names = f": {', '.join(stream.name for stream in found)} moves by another coupling" if found else ""
        raise ConversionError(
            f"the model holds no stream that moves by Dr2Net{names}; convert it with coupling=momentumnet.Dr2Net(...)"
        )
    return streams
