"""Modules that take a gradient by torch.func in their own forward: what PyTorch says of it, explained."""

from __future__ import annotations

from momentumnet.errors import ConversionError


def is_about_hooks(error: Exception) -> bool:
    """Whether torch.func has refused to run under saved-tensor hooks."""
    return "torch.func" in str(error) and "saved tensor hooks" in str(error)


def taking_a_gradient(name: str) -> ConversionError:
    """The error for ``name``, which would have to run under them."""
    return ConversionError(
        f"{name!r} takes a gradient by torch.func (grad, vjp, jacrev, hessian) in its own forward, which does not run "
        "where autograd's saved tensors are dropped. Keep its activations: leave the block out (streams=[...]) or pass "
        "backward='stored'; outside a stream pass others='keep'. torch.func.jvp, jacfwd and vmap may stay"
    )
