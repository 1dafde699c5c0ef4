"""Blocks that ``torch.compile`` has compiled, one by one, in a converted network and in the unconverted one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from momentumnet.command_errors import MachineError
from momentumnet.streams.blocks.converted import converted_blocks


def block_names(converted: nn.Module) -> list[str]:
    """The names of the blocks of a converted network."""
    blocks = {id(block) for block, _ in converted_blocks(converted)}
    return [name for name, module in converted.named_modules() if id(module) in blocks]


@contextmanager
def compiled(networks: Iterable[nn.Module], names: Iterable[str]) -> Iterator[None]:
    """Compiles the blocks ``names`` of each network; the code is forgotten at the end.

    Raises:
        MachineError: The compiler fails inside: without a C++ compiler, for instance.
    """
    from momentumnet.bench.measuring.compiled import COMPILE_ERRORS, compilation, compile_each

    names = list(names)
    with compilation():
        for network in networks:
            compile_each(network.get_submodule(name) for name in names)
        try:
            yield
        except COMPILE_ERRORS as error:
            reason = str(error).strip().splitlines()[0]
            raise MachineError(f"--compile: torch.compile failed ({reason}); leave it out") from error
