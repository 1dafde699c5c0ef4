"""The loss of a model as a function of its trainable parameters: values, gradients, products with the Hessian.

Curvature needs no more than these, and neither do learned initialisations: with theta_i = m_i theta0_i, the derivative
of anything with respect to the scale m_i is ``<d/d theta_i, theta0_i>``; and whatever depends on the gradient g(theta)
is differentiated by one product of the Hessian with a vector. Both are sums over the samples, so both can be made chunk
by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_pre_hook

from momentumnet.loss.batches import Batch, LossFunction, outputs_of
from momentumnet.loss.samples import chunks
from momentumnet.options import check_is_whole
from momentumnet.recompute.surroundings.generators import Generators

Vectors = list[Tensor]


class ParametricLoss:
    """``L(theta; batch)``, theta being the parameters of the model that need gradients, each once.

    The model is only called: its parameters and buffers stay as they are (each call works on a copy of the buffers, so
    batch normalisation in training mode takes the batch's statistics and moves no running ones).

    Args:
        model: any module.
        loss_fn: ``loss_fn(model_output, target)``, a scalar.

    Raises:
        ValueError: no parameter of the model needs a gradient, or one has no values.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not trainable:
            raise ValueError(
                f"{type(model).__name__} has no parameter with requires_grad=True, so nothing to differentiate by"
            )
        check_is_whole(model)
        self.model, self.loss_fn = model, loss_fn
        self.names = tuple(trainable)
        self.parameters = list(trainable.values())

    def leaves(self) -> Vectors:
        """theta as the model has it now: copies that gradients are taken with respect to."""
        return [parameter.detach().clone().requires_grad_() for parameter in self.parameters]

    def __call__(self, theta: Sequence[Tensor], batch: Batch) -> Tensor:
        """The loss at theta.

        Raises:
            ValueError: the loss function returned no scalar.
        """
        inputs, target = batch
        tensors = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        tensors.update(zip(self.names, theta, strict=True))
        output = outputs_of(lambda *args, **kwargs: functional_call(self.model, tensors, args, kwargs), inputs)
        loss = self.loss_fn(output, target)
        if not isinstance(loss, Tensor) or loss.dim():
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return a scalar, got {got}")
        return loss


class Gradient:
    """The gradient of a loss at theta, and products of the Hessian there with vectors.

    Args:
        loss: the function.
        theta: where; tensors that need gradients.
        batch: the samples.
        chunk: None takes the whole batch. A number takes that many samples at a time: the memory of one chunk.
        products: whether ``times`` will be called. The graph of an unsplit gradient is kept for it; the gradient of a
            chunk is computed again for it, which takes one more forward and backward pass.

    Attributes:
        loss: the value of the loss.
        value: the gradient, a tensor for each of theta.
        reached: for each of theta, whether the loss depends on it at all.
    """

    def __init__(
        self, loss: ParametricLoss, theta: Vectors, batch: Batch, *, chunk: int | None = None, products: bool = False
    ) -> None:
        self._function, self._theta = loss, theta
        self._parts = [(batch, 1.0)] if chunk is None else chunks(batch, chunk)
        self._generators: list[Generators] = []
        self._graph: tuple[Tensor, ...] = ()
        self.reached = [False] * len(theta)
        self.loss, self.value = 0.0, [torch.zeros_like(tensor, requires_grad=False) for tensor in theta]
        for part, share in self._parts:
            self._generators.append(Generators(*{tensor.device for tensor in theta}))
            value, gradient = self._differentiated(part, create_graph=products and chunk is None)
            if products and chunk is None:
                self._graph = gradient
            self.loss += share * float(value)
            _add(self.value, gradient, share)

    def times(self, vectors: Vectors, *, keep_graph: bool = False) -> Vectors:
        """``H(theta) v``. Where the graph was kept it is freed on the way, unless a further product will need it."""
        if self._graph:
            graph = self._graph
            if not keep_graph:
                self.forget_graph()
            return product(graph, self._theta, vectors, keep_graph=keep_graph)
        result = [torch.zeros_like(tensor, requires_grad=False) for tensor in self._theta]
        for (part, share), generators in zip(self._parts, self._generators, strict=True):
            # Dropout has to drop what it dropped in the gradient.
            with generators.replayed():
                _, gradient = self._differentiated(part, create_graph=True)
            _add(result, product(gradient, self._theta, vectors), share)
        return result

    def forget_graph(self) -> None:
        """Free what ``times`` would need."""
        self._graph = ()

    def _differentiated(self, batch: Batch, *, create_graph: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        value = self._function(self._theta, batch)
        partial = _partial_derivatives(value, self._theta, create_graph=create_graph)
        self.reached = [known or part is not None for known, part in zip(self.reached, partial, strict=True)]
        return value.detach(), _materialised(partial, self._theta)


def gradient_of(value: Tensor, theta: Sequence[Tensor], *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """The gradient of a scalar; zero for what it does not depend on."""
    return _materialised(_partial_derivatives(value, theta, create_graph=create_graph), theta)


def _partial_derivatives(value: Tensor, theta: Sequence[Tensor], *, create_graph: bool) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        return (None,) * len(theta)
    with _at_theta():
        return torch.autograd.grad(value, theta, create_graph=create_graph, allow_unused=True)


def _materialised(partial: Sequence[Tensor | None], theta: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros_like(tensor, requires_grad=False) if part is None else part
        for part, tensor in zip(partial, theta, strict=True)
    )


def product(
    gradient: Sequence[Tensor], theta: Sequence[Tensor], vectors: Sequence[Tensor], *, keep_graph: bool = False
) -> Vectors:
    """``sum_j d gradient_j / d theta * v_j``, of a gradient that has its graph."""
    # A parameter that enters linearly has a constant gradient.
    pairs = [(g, v.to(g.dtype)) for g, v in zip(gradient, vectors, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(tensor) for tensor in theta]
    outputs, weights = zip(*pairs, strict=True)
    with _at_theta():
        products = torch.autograd.grad(
            outputs, theta, weights, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
    return list(products)


@contextmanager
def _at_theta() -> Iterator[None]:
    """Around a backward pass: what is recomputed in it may not read the model's own parameters in theta's place."""
    hook = register_module_forward_pre_hook(_refuse_own_parameters)
    try:
        yield
    finally:
        hook.remove()


def _refuse_own_parameters(module: nn.Module, _: object) -> None:
    for name, parameter in module._parameters.items():
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
            raise ValueError(
                f"a {type(module).__name__} was called again in backward with the model's own parameter {name!r}, not "
                "with the weights that the derivative is taken at, so it would be wrong. Most likely the model uses "
                "torch.utils.checkpoint: turn that off (model.gradient_checkpointing_disable() in transformers) while "
                "this runs"
            )


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, of which its gradient is the one by each; a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def norm(vectors: Sequence[Tensor], order: int) -> float:
    """The 1- or 2-norm of all entries together."""
    norms = [torch.linalg.vector_norm(as_real(vector.detach()), order).to(vectors[0].device) for vector in vectors]
    return float(torch.linalg.vector_norm(torch.stack(norms), order))


def inner_products(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """``<left_i, right_i>`` for each i, in float64 on the CPU."""
    device = left[0].device
    sums = [(as_real(a.detach()) * as_real(b.detach())).sum().to(device) for a, b in zip(left, right, strict=True)]
    return torch.stack(sums).cpu().double()


def _add(total: Vectors, vectors: Sequence[Tensor], share: float) -> None:
    for summed, vector in zip(total, vectors, strict=True):
        summed.add_(vector.detach(), alpha=share)


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Let PyTorch use operations that have second derivatives; gradients are enabled inside.

    The fused attention kernels and cuDNN's recurrent layers have none. A recurrent layer keeps references to the
    parameters of its last call; it gets its own back at the end.
    """
    recurrent = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent:
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.callback(_register_again, recurrent)
        yield


def _register_again(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, parameter)
