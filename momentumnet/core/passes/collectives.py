"""Collectives that a stream's blocks call: what is recomputed is so on all processes, or on none.

A block that is sharded, parallel, or that normalises over processes calls the others. What one process decides by its
own values, to play a pass again or to store activations behind a NaN, would leave it waiting for the others, or be
answered by another call of theirs. So such streams look at every step, which never has to be played again, and
recompute behind a NaN, too.
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist


def processes() -> int:
    """How many processes there are; 1 where nothing has been started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def launched() -> int:
    """How many processes a launcher has started, whether they have met yet or not: ``torchrun`` and others say so."""
    said = os.environ.get("WORLD_SIZE", "")
    return max(processes(), int(said) if said.isdecimal() else 1)


def called() -> int:
    """A number that changes with each collective that this process calls, in whatever group. Reads no device."""
    # Private: no public function tells what the groups are. A backend that does not count has nothing to tell.
    groups = dist.distributed_c10d._world.pg_map
    return sum(_count(group) for group in groups)


def _count(group: Any) -> int:
    try:
        return int(group._get_sequence_number_for_group())
    except (RuntimeError, AttributeError):
        return 0


class Company:
    """Whether the blocks of a stream call collectives: found out in passes, starting with the first one."""

    def __init__(self) -> None:
        self._found: bool | None = None
        self._before: int | None = None

    @property
    def expected(self) -> bool:
        """Whether a block may call other processes, as far as is known."""
        return self._found is not False and processes() > 1

    def block_begins(self) -> None:
        """A block is about to run."""
        self._before = called() if processes() > 1 else None

    def block_ends(self) -> bool:
        """It has run. Whether it has called other processes, which was not expected."""
        if self._before is None or called() == self._before:
            return False
        was_expected, self._found = self.expected, True
        return not was_expected

    def pass_ends(self) -> None:
        """All blocks have run."""
        if self._found is None and processes() > 1:
            self._found = False
