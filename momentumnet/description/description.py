"""What a converted model is, as plain data, and the same again from a stock model."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet import couplings
from momentumnet.core.outside.checkpoint import Checkpoint, CheckpointChain
from momentumnet.core.outside.offload import Offload
from momentumnet.core.passes.coupled_stream import CoupledStream
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.core.tensors.packed import Companion
from momentumnet.description.description_check import (
    BY_FORWARD,
    COMPANIONS,
    OFFLOADED,
    OPTIONS,
    VERSION,
    check,
    check_fits,
    check_velocity,
)
from momentumnet.errors import ConversionError
from momentumnet.streams.blocks.containers import sizes_of
from momentumnet.streams.blocks.converted import BlockByForward, Role, Runner, converted_blocks, is_converted
from momentumnet.streams.blocks.roles import offloaded, recomputed


def describe(model: nn.Module) -> dict[str, Any]:
    """What the model is beside its class and its parameters: gamma, streams and options.

    A state dict holds none of it, and loads into the stock class, which computes another function. Keep this beside it:
    ``convert(stock, like=description)`` makes the same network again. Models with a ``config`` that is saved
    with them carry it there, as ``config.momentumnet``.

    Args:
        model: a model that `convert` or `transform_to_momentumnet` returned.

    Returns:
        Text, numbers, lists and dicts, for ``json``: ``streams``, each with ``gamma`` as a fraction ("1/8"), or its
        ``coupling`` where that is not momentum, its blocks by name in call order and its options; ``recomputed``, the
        modules outside that are recomputed, alone or in a chain (all there is where a budget was planned for a network
        without streams); ``offloaded``, where a plan has them, the units whose saved tensors go to host memory;
        ``by_forward``, where there are such, the modules whose ``forward`` is called, and not they themselves;
        ``containers``, how many children those that hold the blocks have; ``model``, the name of its class.

    Raises:
        ConversionError: the model holds no converted block, or lacks one that its stream had.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> encoder = torch.nn.TransformerEncoder(layer, 3)
        >>> description = mn.describe(mn.convert(encoder, torch.zeros(1, 4, 8), gamma=0.9))
        >>> description["streams"][0]["gamma"]
        '9/10'
        >>> again = mn.convert(encoder, like=description)
    """
    if not is_converted(model):
        raise ConversionError(
            f"{type(model).__name__} holds no converted block, so there is nothing to describe; convert it first. (If "
            "it was loaded from a checkpoint of a converted one, that description is in model.config.momentumnet.)"
        )
    streams, outside = _names_by_runner(model)
    offloaded_there = _describe_offloaded(model)
    blocks = [name for _, names in streams for name in names]
    by_forward = [name for name, module in model.named_modules() if isinstance(module, BlockByForward)]
    return {
        "version": VERSION,
        "model": type(model).__name__,
        "containers": sizes_of(model, blocks),
        "streams": [_describe_stream(stream, names) for stream, names in streams],
        "recomputed": outside,
        **({OFFLOADED: offloaded_there} if offloaded_there else {}),
        **({BY_FORWARD: by_forward} if by_forward else {}),
    }


def from_description(
    model: nn.Module, description: Mapping[str, Any], velocity: str | nn.Module | None
) -> tuple[list[MomentumStream], list[Role], list[str]]:
    """The streams and the other roles of a description, for a model that is not converted; what is called by forward.

    Args:
        model: the stock model.
        description: of `describe`.
        velocity: the module that makes the initial velocity, where the described model had one.

    Raises:
        ConversionError: it is no description, of another version, or the model does not fit it.
    """
    check(description)
    check_fits(model, description)
    check_velocity(description["streams"], velocity)
    runners = [_stream(found, velocity) for found in description["streams"]]
    units = [
        Offload(found["names"], found["settled_behind"], input_stays=found["input_stays"])
        for found in description.get(OFFLOADED, ())
    ]
    roles = [*recomputed(description["recomputed"]), *offloaded(units)]
    return runners, roles, description.get(BY_FORWARD, [])


def _names_by_runner(model: nn.Module) -> tuple[list[tuple[MomentumStream, list[str]]], list[list[str]]]:
    """The streams with the names of their blocks, and the names of what is recomputed outside.

    By the names that the modules have now: a converted model may have been put into another one since.
    """
    place = {id(module): name for name, module in reversed(list(model.named_modules()))}
    roles: dict[int, tuple[Runner, dict[str, str]]] = {}
    for block, role in converted_blocks(model):
        roles.setdefault(id(role.runner), (role.runner, {}))[1][role.name] = place[id(block)]
    streams, outside = [], []
    for runner, names in roles.values():
        if isinstance(runner, MomentumStream):
            gone = [block for block in runner.blocks if block not in names]
            if gone:
                raise ConversionError(f"stream {runner.name!r} has lost its blocks {gone}, so it cannot be described")
            streams.append((runner, [names[block] for block in runner.blocks]))
        elif isinstance(runner, CheckpointChain):
            first, last = runner.ends
            outside.append(
                [names[first], *(now for name, now in names.items() if name not in runner.ends), names[last]]
            )
        elif isinstance(runner, Checkpoint):
            outside += [[name] for name in names.values()]
    return streams, outside


def _describe_offloaded(model: nn.Module) -> list[dict[str, Any]]:
    """The units whose saved tensors go to host memory, by the names that their modules have now."""
    place = {id(module): name for name, module in reversed(list(model.named_modules()))}
    roles = [(place[id(block)], role) for block, role in converted_blocks(model)]
    now = {role.name: name for name, role in roles}
    units = {id(role.offload): role.offload for _, role in roles if role.offload is not None}
    return [
        {
            "names": [now[name] for name in unit.names],
            "settled_behind": None if unit.settled_behind is None else now[unit.settled_behind],
            "input_stays": unit.input_stays,
        }
        for unit in units.values()
    ]


def _describe_stream(stream: MomentumStream, names: list[str]) -> dict[str, Any]:
    velocity = "branch" if stream.branch_first else None if stream.velocity_module is None else "module"
    plain = {option: getattr(stream, option) for option in OPTIONS}
    companions = [{"arguments": list(one.arguments), "outputs": list(one.outputs)} for one in stream.companions]
    return {
        "name": stream.name,
        "blocks": names,
        "arguments": None if stream.arguments is None else list(stream.arguments),
        **rule_of(stream),
        "initial_velocity": velocity,
        **plain,
        **({COMPANIONS: companions} if companions else {}),
    }


def rule_of(stream: MomentumStream) -> dict[str, Any]:
    """What a stream's description says of its rule: its gamma, or its coupling."""
    if isinstance(stream, CoupledStream):
        return {"coupling": couplings.describe(stream.rule)}
    return {"gamma": str(stream.gamma)}


def _stream(found: Mapping[str, Any], velocity: str | nn.Module | None) -> MomentumStream:
    options = {"arguments": found["arguments"], **{option: found[option] for option in OPTIONS}}
    options["companions"] = [
        Companion(tuple(one["arguments"]), tuple(one["outputs"])) for one in found.get(COMPANIONS, ())
    ]
    place = found["name"], tuple(found["blocks"])
    try:
        if "coupling" in found:
            stream: MomentumStream = CoupledStream(*place, couplings.from_description(found["coupling"]), **options)
        else:
            is_branch = found["initial_velocity"] == "branch"
            stream = MomentumStream(*place, Fraction(found["gamma"]), branch_first=is_branch, **options)
    except (ValueError, ZeroDivisionError) as error:
        raise ConversionError(f"the description of stream {found['name']!r} cannot be followed: {error}") from error
    if isinstance(velocity, nn.Module) and found["initial_velocity"] == "module":
        stream.velocity_module = velocity
    return stream
