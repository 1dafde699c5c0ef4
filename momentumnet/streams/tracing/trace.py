"""One traced forward pass, which leaves the model as it was found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from momentumnet.core.tensors import transforms
from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.nested import copied, tensors_cached, tensors_in, tensors_inside
from momentumnet.streams.tracing.calls import Place, Trace
from momentumnet.streams.tracing.forwards import forwards_as_calls, uncalled_siblings
from momentumnet.streams.tracing.guard import eager_functions, fresh_dropout_outputs, left_as_found
from momentumnet.streams.tracing.lifted_hooks import lifted_for_transforms
from momentumnet.streams.tracing.recorder import Recorder, saved_tensors_shown_to, unseen
from momentumnet.streams.tracing.training_norms import batches_measured


class Arguments(NamedTuple):
    """Example inputs of both kinds, as a call has been given them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


ALONE = "inputs, targets = next(iter(loader))"


def call_with_example(model: nn.Module, example_inputs: Any) -> Any:
    """Calls ``model`` with ``example_inputs`` and returns what it returns.

    Args:
        model: The module to call.
        example_inputs: A tensor or a list (one positional argument), a tuple (the positional arguments) or a
            mapping (the keyword arguments); or `Arguments`.

    Raises:
        ConversionError: ``example_inputs`` is something else.

    Example:
        >>> call_with_example(nn.Linear(2, 3), torch.zeros(1, 2)).shape
        torch.Size([1, 3])
    """
    if isinstance(example_inputs, Arguments):
        return model(*example_inputs.args, **example_inputs.kwargs)
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple):
        return model(*example_inputs)
    if isinstance(example_inputs, (torch.Tensor, list)):
        return model(example_inputs)
    raise ConversionError(
        f"example_inputs is of type {type(example_inputs).__name__}; expected a tensor, a list (one positional "
        "argument), a tuple of positional arguments or a dict of keyword arguments."
    )


@contextmanager
def told_of_pairs(inputs: Any, called: str, cure: str, kind: type[Exception] = TypeError) -> Iterator[None]:
    """Inside, a call with two inputs that the model refuses is told what a loader's pair is.

    Args:
        inputs: What it is called with.
        called: The model and the inputs, as the message names them.
        cure: How the inputs are had alone.
        kind: Of the error.
    """
    try:
        yield
    except (TypeError, AttributeError) as error:
        if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
            raise
        raise kind(
            f"{called}, a {type(inputs).__name__} of two: {error}. Of a loader's pair of inputs and "
            f"targets give the inputs alone: {cure}"
        ) from error


def record(model: nn.Module, example_inputs: Any, *, eval_mode: bool = True, values: bool = True) -> Trace:
    """Traces one forward pass of ``model`` and leaves the model, the inputs and the generators as they were.

    The pass is made again where a module may take its stream behind another argument, and that one has no gradient, and
    where the ``forward`` of modules may be called, and not they themselves: then it is shown as a call of them.

    Args:
        model: The module to trace; it runs with gradients enabled.
        eval_mode: Whether it runs in eval mode, its batch norms on the statistics of the batch, or in its own.
        values: Whether the magnitudes and spreads of values are looked at; else they are 0 and 1.
        example_inputs: See :func:`call_with_example`.

    Returns:
        The trace, which holds the pass's activations and autograd graph until it is dropped.

    Raises:
        ConversionError: a parameter was made in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ConversionError(
            "the model's parameters were made in torch.inference_mode, so they can have no gradients; make, load or "
            "copy it outside"
        )
    forwards: list[str] = []
    recorded = partial(_record, model, example_inputs, eval_mode=eval_mode, values=values)
    recorder = recorded()
    if uncalled := _uncalled(model, recorder.trace):
        del recorder  # and the activations that it holds
        recorder = recorded(forwards=uncalled)
        still = set(_uncalled(model, recorder.trace))
        forwards = [name for name in uncalled if name not in still]
    if recorder.overlooked:
        places = recorder.overlooked
        del recorder
        recorder = recorded(places, forwards)
    recorder.trace.by_forward = frozenset(forwards)
    return recorder.trace


def _uncalled(model: nn.Module, trace: Trace) -> list[str]:
    """Modules that are not called, while what they hold is; but for those on which somebody has put another forward."""
    siblings = uncalled_siblings(model, {call.module for call in trace.root.walk()})
    return [name for names in siblings for name in names if "forward" not in model.get_submodule(name).__dict__]


def _record(
    model: nn.Module,
    example_inputs: Any,
    places: Collection[Place] = (),
    forwards: Iterable[str] = (),
    *,
    eval_mode: bool,
    values: bool,
) -> Recorder:
    torch.clear_autocast_cache()  # the pass's own casts of weights belong to it, as in a training step
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        norms = batches_measured(model) if eval_mode else nullcontext()
        stack.enter_context(left_as_found(model, example_inputs, eval_mode=eval_mode))
        recorder = Recorder(model, places, values=values)
        stack.enter_context(eager_functions())
        stack.enter_context(forwards_as_calls(map(model.get_submodule, forwards)))
        stack.enter_context(_calls_shown_to(recorder, model))
        hooks = saved_tensors_shown_to(recorder)
        stack.enter_context(hooks)
        stack.enter_context(lifted_for_transforms(hooks))
        stack.enter_context(fresh_dropout_outputs())
        stack.enter_context(norms)
        stack.enter_context(told_of_pairs(example_inputs, "the model cannot be called on example_inputs", ALONE))
        output = call_with_example(model, copied(_hollow(example_inputs, recorder, stack)))
        recorder.trace.returned, recorder.trace.cached = tensors_inside(output), tensors_cached(output)
        recorder.tell_what_was_made()
    return recorder


@contextmanager
def _calls_shown_to(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Inside, the recorder is shown the calls of all modules, but for those that a transform of torch.func makes."""
    hooks: list[RemovableHandle] = []
    enter, leave = unseen(_untransformed(recorder.enter)), unseen(_untransformed(recorder.leave))
    try:
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
                hooks.append(module.register_forward_hook(leave, with_kwargs=True))
        yield
    finally:
        for hook in reversed(hooks):
            hook.remove()


def _untransformed(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, which is not called inside of a block's own vmap or grad: tensors there stand for others."""

    def called(*args: Any) -> Any:
        return hook(*args) if transforms.inside() is None else None

    return called


def _hollow(example_inputs: Any, recorder: Recorder, stack: ExitStack) -> Any:
    """The example, of fake tensors where it or the model lies on the meta device.

    Many models read values of what they have made themselves, such as positions; where these are fake they know that
    there are none, as compilers and exporters have taught them. On the meta device they fail.
    """
    tensors = [*recorder.constants, *tensors_in(example_inputs)]
    modes = [tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor)]
    if not modes and not any(tensor.is_meta for tensor in tensors):
        return example_inputs
    mode = stack.enter_context(modes[0] if modes else FakeTensorMode(allow_non_fake_inputs=True))
    recorder.constants += [mode.from_tensor(tensor) for tensor in recorder.constants]
    return pytree.tree_map_only(torch.Tensor, mode.from_tensor, example_inputs)
