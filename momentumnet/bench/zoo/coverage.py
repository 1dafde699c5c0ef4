"""How many of a network's residual blocks a conversion covers."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from momentumnet.streams.finding.discover import Discovery


def residual_blocks(model: nn.Module, discovery: Discovery) -> set[str]:
    """Names of all residual blocks of a network, none of which lies inside another.

    Those of its streams; residual blocks that are in none; and what is of the same classes as they are, such as the
    blocks that change the shape. Plain containers count only as blocks of streams: their class says nothing.
    """
    blocks = {name for stream in discovery.streams for name in stream.blocks}
    others = {name for found in discovery.rejections if found.is_residual for name in found.blocks} - {""}
    modules = dict(model.named_modules())
    classes = {type(modules[name]) for name in blocks | others} - {nn.Sequential, nn.ModuleList}
    others |= {name for name, module in modules.items() if name and type(module) in classes}
    holders = {holder for name in blocks for holder in _ancestors(name)}
    return blocks | _outermost(others - holders - blocks, blocks)


def _outermost(names: Collection[str], blocks: Collection[str]) -> set[str]:
    """Those of the names that lie in no other of them, nor in a block."""
    every = {*names, *blocks}
    return {name for name in names if every.isdisjoint(_ancestors(name))}


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
