"""The linear adjoint of a step, in plain PyTorch or by the native kernel: one pass over memory instead of four."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from momentumnet.arithmetic.compiled import libraries
from momentumnet.arithmetic.compiled.launching import DTYPES, launch
from momentumnet.arithmetic.layout import Layout

# Largest gamma at which the gradient of v travels in a half type.
HALF_GAMMA = 0.5

Gradients = tuple[Tensor, Tensor, Tensor]


def adjoint(
    grad_x: Tensor,
    grad_v: Tensor,
    gamma: float,
    weight: float,
    *,
    branch_is_output: bool = True,
    overwrite: bool = False,
) -> Gradients:
    """Transpose of one step: the gradients of the block's output, of v and of x.

    With s = grad_x + grad_v:  grad_f = w s,  grad_v = gamma s. The block's output y is f itself, and the gradient of x
    then ``grad_x``; or (not ``branch_is_output``) y is x + f, so that f = y - x passes ``-grad_f`` on to x. Linear, so
    it needs nothing of the state. With ``overwrite`` the new gradient of v takes the memory of ``grad_v``.

    Of floats: the compiler of PyTorch 2.11 cannot trace arithmetic of fractions.
    """
    compute = in_one_pass if _fit_the_kernel(grad_x, grad_v) else by_operations
    return compute(grad_x, grad_v, gamma, weight, branch_is_output=branch_is_output, overwrite=overwrite)


def by_operations(
    grad_x: Tensor, grad_v: Tensor, gamma: float, weight: float, *, branch_is_output: bool, overwrite: bool
) -> Gradients:
    """`adjoint` of any tensors, by operations that can be differentiated: the reference for the kernel.

    Gradients of half types are added and multiplied in float32, and rounded once.
    """
    if grad_x.dtype.itemsize < 4:
        wide_x, wide_v = grad_x.float(), grad_v.float()
        total = wide_x + wide_v
        grad_branch, grad_velocity = total * weight, (total * gamma).to(grad_v.dtype)
        grad_velocity = grad_v.copy_(grad_velocity) if overwrite else grad_velocity
        grad_position = grad_x if branch_is_output else (wide_x - grad_branch).to(grad_x.dtype)
        return grad_branch.to(grad_x.dtype), grad_velocity, grad_position
    total = grad_v.add_(grad_x) if overwrite else grad_x + grad_v
    grad_branch, grad_velocity = total * weight, total.mul_(gamma)
    return grad_branch, grad_velocity, grad_x if branch_is_output else grad_x - grad_branch


def velocity_dtype(dtype: torch.dtype, gamma: float) -> torch.dtype:
    """The type in which the gradient of v travels beside gradients of x of ``dtype``.

    A half type's own, where gamma is small: it is multiplied by gamma at each step, so that its rounding adds at most
    as much to the gradient of x as that is rounded itself. Else float32 at least.
    """
    return dtype if dtype.itemsize > 4 or (dtype.itemsize < 4 and gamma <= HALF_GAMMA) else torch.float32


def in_one_pass(
    grad_x: Tensor, grad_v: Tensor, gamma: float, weight: float, *, branch_is_output: bool, overwrite: bool
) -> Gradients:
    """`adjoint` by the native kernel, to the same bits."""
    grad_branch = torch.empty_like(grad_x)
    grad_velocity = grad_v if overwrite else torch.empty_like(grad_v)
    grad_position = None if branch_is_output else torch.empty_like(grad_x)
    constants = libraries.Adjoint(gamma, weight, DTYPES[grad_x.dtype], DTYPES[grad_v.dtype])
    launch("mn_adjoint", constants, grad_x, grad_v, grad_branch, grad_velocity, grad_position)
    if overwrite:
        torch.autograd.graph.increment_version(grad_v)
    return grad_branch, grad_velocity, grad_x if grad_position is None else grad_position


def _fit_the_kernel(grad_x: Tensor, grad_v: Tensor) -> bool:
    """Whether both are plain memory of one dense layout, and nothing but their values is asked for."""
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0  # gradients may have tangents
        and _is_plain_memory(grad_x)
        and _is_plain_memory(grad_v)
        and (grad_x.device, grad_x.shape) == (grad_v.device, grad_v.shape)
        and (grad_v.dtype == grad_x.dtype or (grad_v.dtype == torch.float32 and grad_x.dtype.itemsize < 4))
        and grad_x.stride() == grad_v.stride()
        and _is_dense(grad_x)
        and libraries.of(grad_x.device).library is not None
    )


def _is_plain_memory(value: Tensor) -> bool:
    """Whether the floats of ``value`` are those that lie at its address.

    Those of subclasses (DTensor) and of batched tensors (vmap's, and those of ``is_grads_batched``), which are no
    subclasses, need not even exist; others are to be negated, or are zeros without memory.
    """
    return (
        type(value) is Tensor
        and value.dtype in DTYPES
        and value.layout == torch.strided
        and not value.is_nested
        and torch._C._has_storage(value)
        and not value.is_neg()
        and not value._is_zerotensor()
    )


def _is_dense(value: Tensor) -> bool:
    """Whether its elements fill their stretch of memory, each in a place of its own."""
    return value.is_contiguous() or Layout.of(value).stride == value.stride()
