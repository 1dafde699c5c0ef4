"""Kaiming's and Xavier's initialisation of any network: every weight drawn anew, every bias zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from momentumnet.init.attempt import all_or_nothing
from momentumnet.init.matrices import maps_of, zero_padding
from momentumnet.init.report import InitReport, norms_of, scales_between
from momentumnet.options import check_has_values, is_finite, one_of, positive

MODES = ("fan_in", "fan_out")
DISTRIBUTIONS = ("normal", "uniform")

_Owner = tuple[nn.Module, str]


def kaiming_(
    model: nn.Module,
    *,
    mode: str = "fan_in",
    nonlinearity: str = "relu",
    distribution: str = "normal",
    a: float = 0.0,
) -> InitReport:
    """Draw all weights anew so that signals (or gradients) keep their size through the layers.

    He, Zhang, Ren, Sun, *Delving Deep into Rectifiers*, ICCV 2015, equations 10 (``fan_in``) and 14 (``fan_out``)::

        W ~ N(0, gain^2 / fan)   or   W ~ U(-b, b) with b = gain sqrt(3 / fan);   biases 0

    where gain is sqrt(2) for a ReLU and sqrt(2 / (1 + a^2)) for a leaky one. What is a weight:

    * Each parameter of two or more dimensions that requires a gradient; one that several modules share is drawn once.
    * The fans are those of one linear map: of each gate of a recurrent layer, of queries, keys and values separately,
      of each group of a grouped convolution, of each matrix in a stack of three dimensions (experts; as (out, in)).
      The weights of a transposed convolution and of transformers' ``Conv1D`` are read the other way round.
    * Left alone: normalisation layers, tables of embeddings (one row is looked up, nothing is summed, so there is no
      fan; unless a linear layer shares the table, whose rows for padding are zero then), and tensors whose entries are
      all the same number other than 0, which are multipliers such as ConvNeXt's layer scale.

    Biases are the parameters with "bias" in their name beside such a weight in the same module.

    Args:
        model: Any module, converted or not; changed in place, and not at all if something is raised.
        mode: ``"fan_in"`` keeps the variance of the forward pass, ``"fan_out"`` that of the backward pass.
        nonlinearity: What follows the weights, by its name in ``torch.nn.init.calculate_gain``.
        distribution: ``"normal"`` or ``"uniform"``.
        a: Negative slope, for ``nonlinearity="leaky_relu"``.

    Returns:
        The norm of each parameter over its norm before.

    Raises:
        ValueError: An option has no such value, the model has no weight that trains, or it holds a weight under a
            parametrization (such as ``torch.nn.utils.parametrizations.weight_norm``).

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))
        >>> report = kaiming_(model)
        >>> print(f"{model[0].weight.std():.2f}")  # sqrt(2 / 100)
        0.14
    """
    one_of("mode", mode, MODES)
    one_of("distribution", distribution, DISTRIBUTIONS)
    if not is_finite(a):
        raise ValueError(f"a must be a finite number, got {a!r}")
    if a and nonlinearity != "leaky_relu":
        raise ValueError(f"a={a} is the slope of leaky_relu and means nothing for nonlinearity={nonlinearity!r}")
    nn.init.calculate_gain(nonlinearity, a)  # type: ignore[arg-type]  # raises for one that it does not know
    draw = nn.init.kaiming_normal_ if distribution == "normal" else nn.init.kaiming_uniform_
    return _draw_all(model, "kaiming", partial(draw, a=a, mode=mode, nonlinearity=nonlinearity))  # type: ignore[arg-type]


def xavier_(model: nn.Module, *, distribution: str = "uniform", gain: float = 1.0) -> InitReport:
    """Draw all weights anew, halfway between keeping the size of signals and that of gradients.

    Glorot, Bengio, *Understanding the difficulty of training deep feedforward neural networks*, AISTATS 2010,
    equation 16::

        W ~ U(-b, b) with b = gain sqrt(6 / (fan_in + fan_out))   or   W ~ N(0, 2 gain^2 / (fan_in + fan_out));
        biases 0

    What counts as a weight and as a bias, and what is left alone, is as in `kaiming_`.

    Args:
        model: Any module, converted or not; changed in place, and not at all if something is raised.
        distribution: ``"uniform"`` or ``"normal"``.
        gain: Factor of all weights, positive; ``torch.nn.init.calculate_gain("tanh")`` for tanh networks.

    Returns:
        The norm of each parameter over its norm before.

    Raises:
        ValueError: As `kaiming_`.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(100, 200), nn.Tanh())
        >>> report = xavier_(model)
        >>> print(f"{model[0].weight.abs().max():.2f}")  # sqrt(6 / 300)
        0.14
    """
    one_of("distribution", distribution, DISTRIBUTIONS)
    positive("gain", gain)
    draw = nn.init.xavier_uniform_ if distribution == "uniform" else nn.init.xavier_normal_
    return _draw_all(model, "xavier", partial(draw, gain=gain))


def _draw_all(model: nn.Module, method: str, draw: Callable[[Tensor], object]) -> InitReport:
    check_has_values(model)
    weights = dict(_weights(model))
    if not weights:
        raise ValueError(
            f"{type(model).__name__} has no weight to draw: no parameter of two or more dimensions requires a gradient"
        )
    with all_or_nothing(model):
        before = norms_of(model)
        for weight, (module, name) in weights.items():
            for linear_map in maps_of(module, name, weight):
                draw(linear_map)
        for module in {id(module): module for module, _ in weights.values()}.values():
            for name, parameter in module.named_parameters(recurse=False):
                if "bias" in name and parameter.requires_grad:
                    nn.init.zeros_(parameter)
        zero_padding(model, weights)
        return InitReport(method, scales_between(before, norms_of(model)))


def _weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, _Owner]]:
    """Each parameter to be drawn, with a module that multiplies by it; a shared one comes several times."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module) or any(map(_computes_a_weight, module._forward_pre_hooks.values())):
            raise ValueError(
                f"{path or type(model).__name__} has a parametrized weight, which cannot be drawn directly; use "
                "torch.nn.utils.parametrize.remove_parametrizations (remove_weight_norm, remove_spectral_norm; "
                "momentumnet.prune.remove_masks) first and parametrize it again afterwards"
            )
        if _is_left_alone(module):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if _is_weight(name, parameter):
                yield parameter, (module, name)


def _computes_a_weight(hook: object) -> bool:
    """Whether a hook is weight or spectral norm as PyTorch had them before there were parametrizations."""
    return isinstance(hook, (WeightNorm, SpectralNorm))


def _is_left_alone(module: nn.Module) -> bool:
    """Normalisation layers and embeddings, told by the attributes that all of PyTorch's have."""
    return any(hasattr(module, name) for name in ("affine", "elementwise_affine", "num_embeddings"))


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    if parameter.dim() < 2 or not parameter.requires_grad or not parameter.numel() or "bias" in name:
        return False
    first = parameter.detach().flatten()[0]
    multiplier = parameter.numel() > 1 and bool(first) and bool((parameter.detach() == first).all())
    return not multiplier
