"""Context managers that let a model be traced without leaving a mark on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from momentumnet.arithmetic.reports import is_hollow
from momentumnet.recompute.values.left_values import held_beside_tensors, may_be_held
from momentumnet.recompute.values.objects import OF_MODULE, Held, Values, has_state, parts
from momentumnet.streams.blocks.backward_hooks import backward_hooks_off
from momentumnet.streams.blocks.nested import tensors_in
from momentumnet.streams.tracing.python_generators import python_generators_kept
from momentumnet.streams.tracing.written_parameters import parameters_put_back

_DROPOUTS: set[Callable[..., Any]] = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.alpha_dropout,
    torch.feature_dropout,
    torch.feature_alpha_dropout,
}


@contextmanager
def left_as_found(model: nn.Module, inputs: Any, *, eval_mode: bool = True) -> Iterator[None]:
    """Restores all of ``model`` and the random generators at the end; puts it in eval mode if asked to.

    Generators among the ``inputs``, too, of which a copy is no other one.

    Parameters, because some networks rescale weights in place for inference (RWKV), or move a teacher of their own.

    Attributes with all that is in them, because some networks keep activations on themselves (RAFT's correlation
    pyramid) or in a dict of theirs (LeViT's attention biases); so NumPy's arrays and random generators there, too. And
    attributes of parameters.

    The flags are set directly: ``train`` and ``eval`` may be overridden with side effects.

    Backward hooks are off meanwhile.
    """
    modules = list(model.modules())
    flags = [module.training for module in modules]
    held = [
        (module, dict(module.__dict__), [(table, dict(table)) for table in _tables(module)])
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    parameters = list(model.parameters())
    on_parameters = [(vars(p), dict(vars(p))) for p in parameters if type(p) is nn.Parameter]
    standing = [value for _, attributes, _ in held for name, value in attributes.items() if name not in OF_MODULE]
    standing += [buffer for module, _, _ in held for buffer in module._buffers.values()]
    inside = Held(standing, apart=parameters)
    values = Values(inside.tensors)
    found = parts([*standing, inputs], apart=parameters, enters=_looked_into)
    others = [kept for value, _ in found if (kept := held_beside_tensors(value)) is not None]
    tensors = [*parameters, *model.buffers(), *tensors_in(inputs)]
    devices = sorted({tensor.get_device() for tensor in tensors if tensor.is_cuda and not is_hollow(tensor)})
    with torch.random.fork_rng(devices=devices), python_generators_kept():
        try:
            for module in modules:
                module.training = module.training and not eval_mode
            with backward_hooks_off(model), parameters_put_back(model):
                yield
        finally:
            for module, attributes, tables in held:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                for table, entries in tables:
                    _make_as(table, entries)
            for table, entries in on_parameters:
                _make_as(table, entries)
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag
            inside.put_back()
            values.put_back()
            for kept in others:
                kept.put_back()


def _looked_into(value: Any) -> bool:
    return has_state(value) or may_be_held(type(value))


# Parameters, buffers, modules and hooks: models of transformers hook their layers in their first forward.
_TABLES = tuple(name for name, value in nn.Module().__dict__.items() if isinstance(value, dict))


def _make_as(table: dict[str, Any], entries: dict[str, Any]) -> None:
    if table or entries:  # of most modules, most have never held a thing
        table.clear()
        table.update(entries)


def _tables(module: nn.Module) -> list[dict[str, Any]]:
    own = module.__dict__
    return [own[name] for name in _TABLES if name in own]


class fresh_dropout_outputs(TorchFunctionMode):  # noqa: N801 (a context manager, named as one)
    """Lets dropout return a new tensor object in eval mode too.

    In eval mode dropout returns its input itself, which would link two blocks that training does not link. That
    a function mode is active also keeps ``torch.nn``'s transformer layers off their fused inference path.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _asks_for_gradient(func) and args[0].requires_grad and args[1]:
            return None  # a trace gave it one, so that it is no leaf
        output = func(*args, **kwargs)
        if func in _DROPOUTS:
            source = args[0] if args else kwargs["input"]
            rate = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            if output is source and rate > 0:
                return torch.ops.aten.alias.default(output)
        return output


def _asks_for_gradient(func: Callable[..., Any]) -> bool:
    """Whether a function is the assignment to ``requires_grad``, which speech models make to their input."""
    return getattr(func, "__name__", "") == "__set__" and func == _SET_REQUIRES_GRAD


_SET_REQUIRES_GRAD = torch.Tensor.requires_grad.__set__  # type: ignore[attr-defined]


def eager_functions() -> AbstractContextManager[Any]:
    """Runs compiled modules and functions eagerly: a compiled region is one node that shows no skip."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
