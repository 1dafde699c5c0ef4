"""What of PyTorch looks at every operation of a pass, so that the exact state cannot serve it.

The state's integers are moved outside of autograd, on memory: a tangent, a level of `torch.func`, a recorded program or
a tensor of another class would not see that. Such a pass takes the rule in ordinary operations (`core.state.plain`).
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from momentumnet.recompute.surroundings.choices import chosen

logger = logging.getLogger("momentumnet")

# Programs are recorded in them; nobody expects those to recompute.
_RECORDERS = frozenset({"torch.jit.trace", "torch.export", "make_fx"})
_MEMORY = frozenset({Tensor, nn.Parameter, FakeTensor})


def at_work(x: Tensor | None = None) -> str | None:
    """What looks at every operation now, in words; None for a pass as usual. A recompute finds what its forward found.

    Args:
        x: the stream tensor, which may be of a class of its own.
    """
    return chosen(lambda: _found() or (None if x is None else class_of(x)))


def inside() -> str | None:
    """The innermost transform of torch.func that runs now, in words."""
    interpreter: Any = torch._C._functorch.peek_interpreter_stack()
    return None if interpreter is None else f"torch.func ({interpreter.key().name.lower()})"


def _found() -> str | None:
    # Private, as are the others below: no public function tells. Their tests go through all of them.
    if transformed := inside():
        return transformed
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch._C._is_tracing():
        return "torch.jit.trace"
    if torch.compiler.is_compiling():
        return "torch.export"
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")  # nobody uses it where it is not loaded
    return "make_fx" if proxies is not None and proxies.get_proxy_mode() is not None else None


def class_of(x: Tensor) -> str | None:
    """In words, the kind of a tensor whose values are not simply those at its address; None for a usual one."""
    if x.is_nested:
        return "a nested tensor"
    return None if type(x) in _MEMORY else f"a tensor of class {type(x).__name__}"


def outside() -> AbstractContextManager[None]:
    """Context of a recompute in a backward that is transformed itself: the forward was not, so its recompute is not.

    Nor was that in inference mode, in which nothing would be saved.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return _outside()
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


@contextmanager
def _outside() -> Iterator[None]:
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack  # takes a while to load

    with torch.inference_mode(False), forward_ad._set_fwd_grad_enabled(False), temporarily_clear_interpreter_stack():
        yield


def tell(stream: str, transform: str) -> None:
    """Say that the blocks of a pass keep their activations, once for each kind of reason."""
    if transform not in _RECORDERS:
        _tell_once(stream, transform)


@functools.cache
def _tell_once(stream: str, transform: str) -> None:
    logger.warning(
        "stream %r runs under %s: gradients and tangents are right, but such a pass runs in floats with stored "
        "activations and saves no memory",
        stream,
        transform,
    )
