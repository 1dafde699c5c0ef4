"""A peer that is wrong, raises and ends where asked to."""

from __future__ import annotations

from pathlib import Path

# The plain rule, wrong in its own backward pass by a factor of 2; raises and ends where asked to.
FAKE = """
import os
from torch import nn

class Rule(nn.Module):
    def __init__(self, branches, gamma, stored):
        super().__init__()
        self.branches, self.gamma, self.stored = nn.ModuleList(branches), gamma, stored

    def forward(self, x):
        v = 0
        for branch in self.branches:
            v = self.gamma * v + (1 - self.gamma) * branch(x)
            x = x + v
        return x if self.stored else x * 2 - x.detach()

def build(branches, gamma, stored):
    print("something that a peer prints")
    if len(branches) == 3:
        raise RuntimeError("three is too many" + chr(10) + "for me")
    if len(branches) == 4:
        os._exit(7)
    return Rule(branches, gamma, stored)
"""


def write_fake(folder: Path) -> Path:
    """The script of the peer, in ``folder``."""
    path = folder / "run_fake.py"
    path.write_text(FAKE)
    return path
