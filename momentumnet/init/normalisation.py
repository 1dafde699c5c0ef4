"""Normalisation layers: which modules are some, and a network without them."""

from __future__ import annotations

import re

from torch import nn

_CLASSES: tuple[type[nn.Module], ...] = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm) + (
    (nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()
)


def is_normalisation(module: nn.Module) -> bool:
    """Whether ``module`` normalises: one of PyTorch's, or a layer of its own that is alike.

    Alike is a module without children that has running statistics, or whose class is named so and whose parameters all
    have one dimension (``FrozenBatchNorm2d``, ``LlamaRMSNorm``).
    """
    if isinstance(module, _CLASSES):
        return True
    if next(module.children(), None) is not None:
        return False
    if "running_mean" in module._buffers:
        return True
    named = re.search("norm", type(module).__name__, re.IGNORECASE) is not None
    parameters = list(module.parameters())
    return named and bool(parameters) and all(parameter.dim() == 1 for parameter in parameters)


def normalisations_in(model: nn.Module) -> list[str]:
    """The names of the normalisation layers of ``model``; one inside another is not listed again."""
    names: list[str] = []
    for name, module in model.named_modules():
        if is_normalisation(module) and not any(name.startswith(f"{other}.") for other in names):
            names.append(name)
    return names


def remove_normalisations(model: nn.Module) -> list[str]:
    """Replaces every normalisation layer by ``nn.Identity``, in place, and returns their names.

    A layer with children of its own (a normalisation and an activation in one) leaves those behind, called one after
    the other. Activations stop working in place, because the one after a removed layer would overwrite the stream.
    ``nn.TransformerEncoderLayer`` and its encoder do without their fused inference path, which reads the weights of
    the layers that are gone.

    Raises:
        ValueError: ``model`` itself is a normalisation layer.
    """
    removed: list[str] = []
    if is_normalisation(model):
        raise ValueError(f"{type(model).__name__} is a normalisation layer itself; there is no network to take it from")
    for prefix, parent in list(model.named_modules(remove_duplicate=False)):
        for name, child in list(parent._modules.items()):
            if child is not None and is_normalisation(child):
                parent._modules[name] = _left_of(child)
                removed.append(f"{prefix}.{name}" if prefix else name)
    if removed:
        for module in model.modules():
            if getattr(module, "inplace", None) is True:
                module.inplace = False  # type: ignore[assignment]
            # PyTorch has no public switch for one layer: these are the flags that its own check reads first.
            if hasattr(module, "activation_relu_or_gelu"):
                module.activation_relu_or_gelu = 0  # type: ignore[assignment]
            if hasattr(module, "use_nested_tensor"):
                module.use_nested_tensor = False  # type: ignore[assignment]
    return removed


def _left_of(normalisation: nn.Module) -> nn.Module:
    children = [child for child in normalisation.children() if not is_normalisation(child)]
    left = nn.Sequential(*children) if children else nn.Identity()
    return left.train(normalisation.training)
