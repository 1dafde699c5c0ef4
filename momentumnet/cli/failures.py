"""What an error means to the user: one line, and an exit status."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from momentumnet.command_errors import CommandError, MachineError, UsageError
from momentumnet.errors import CheckpointError, MomentumNetError, StorageError
from momentumnet.finetuning import model_inputs, model_sources, own_code
from momentumnet.finetuning.model_inputs import Given
from momentumnet.memory import format_bytes
from momentumnet.out_of_memory import is_out_of_memory

# By the extra that brings them.
EXTRA_MODULES = {
    **dict.fromkeys(("rich", "matplotlib", "sklearn", "safetensors"), "cli"),
    "tensorboard": "tensorboard",
}
# "you tried to allocate 123 bytes" on the CPU, "Tried to allocate 2.00 GiB" on CUDA.
_WANTED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)
# gloo and NCCL, where a process that is waited for has gone.
_OTHERS_GONE = re.compile(r"connection (closed|reset) by peer|broken pipe|remote process exited", re.IGNORECASE)


def explain(error: Exception) -> tuple[str, int] | None:
    """The line for an error and its exit status; None for a fault of the program, which keeps its traceback."""
    if isinstance(error, StorageError):
        return str(error), MachineError.status
    if isinstance(error, CheckpointError):  # a file that was given, or is gone on with
        return str(error), UsageError.status
    if isinstance(error, MomentumNetError):
        return str(error), getattr(error, "status", CommandError.status)
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module not in EXTRA_MODULES:
            return None
        extra = EXTRA_MODULES[module]
        needs = f'this command needs {module}, which is not installed: pip install "momentumnet[{extra}]"'
        return needs, MachineError.status
    if is_out_of_memory(error):
        return _out_of_memory(error), MachineError.status
    if isinstance(error, RuntimeError) and _OTHERS_GONE.search(str(error)):
        return "another process of this run has ended: its message says why", CommandError.status
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}", MachineError.status
    return None


@contextmanager
def told_of_inputs(model: str, given: Sequence[Given] | None) -> Iterator[None]:
    """Inside, what a model raises for inputs that it is not made for is told in one line.

    Args:
        model: Its name.
        given: The inputs that the user has named.

    Raises:
        UsageError: It does not accept them.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError) as error:
        if is_out_of_memory(error) or not (given or model_sources.is_own(model)):
            raise
        inputs = f"the input {model_inputs.described(given)}" if given else "its default input; name others by --input"
        hint = "; integers are named as in 2x16:int64" if given and "Long" in str(error) else ""
        raise UsageError(f"{model} does not accept {inputs}: {own_code.reason(error)}{hint}") from error


def _out_of_memory(error: Exception) -> str:
    found = _WANTED.search(str(error))
    wanted = "" if found is None else found[1]
    if wanted.endswith(" bytes"):
        wanted = format_bytes(int(wanted.partition(" ")[0]))
    asked = f": {wanted} were asked for at once" if wanted else ""
    return f"out of memory{asked}. Take a smaller --batch-size, --image-size or --input, or a smaller model"
