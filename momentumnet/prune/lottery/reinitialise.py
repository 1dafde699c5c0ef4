"""New weights for a network: each module's own way to draw them."""

from __future__ import annotations

from torch import nn


def reset_parameters(model: nn.Module) -> None:
    """Draws all parameters and running statistics anew, in place, with each module's ``reset_parameters``.

    Raises:
        ValueError: A module has parameters of its own and no ``reset_parameters``.
    """
    for name, module in model.named_modules():
        # Attention and transformers of torch have it under a private name only.
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                f"{name or 'the model'} ({type(module).__name__}) has parameters and no reset_parameters(); "
                "pass reinitialise=, a function that draws new weights in place, such as momentumnet.init.kaiming_"
            )
