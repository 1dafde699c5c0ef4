"""Which modules Dynamo compiles, and hooks that it leaves alone.

In a block that is compiled in pieces, operations between two graphs run as they are, and call what autograd calls when
they save a tensor. Dynamo would compile that as it does any other Python code: it reads an in-place counter, a count of
references or a place in memory once, and takes it for a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch._compile import _disable_dynamo

Hook = TypeVar("Hook", bound=Callable[..., Any])


def is_compiled(module: nn.Module) -> bool:
    """By ``module.compile()``, or by ``torch.compile(module)``, which wraps it."""
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


def uncompiled(hook: Hook) -> Hook:
    """The hook, which Dynamo runs as it is, with all that it calls.

    ``torch.compiler.disable`` does that by a function around it, which takes its time for each tensor. It is for a
    PyTorch that has no other way.
    """
    frames = torch._C._dynamo.eval_frame
    try:
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(hook.__code__, frames._FrameExecStrategy(skip, skip))
    except AttributeError:
        return cast(Hook, _disable_dynamo(hook))
    return hook
