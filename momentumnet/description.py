"""What a converted model is, as plain data, and the same again from a stock model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import nn

from momentumnet import couplings
from momentumnet.core.checkpoint import Checkpoint, CheckpointChain
from momentumnet.core.coupled_stream import CoupledStream
from momentumnet.core.offload import Offload
from momentumnet.core.packed import Companion
from momentumnet.core.stream import MomentumStream
from momentumnet.errors import ConversionError
from momentumnet.listing import quoted
from momentumnet.streams.containers import differences, sizes_of
from momentumnet.streams.converted import BlockByForward, Role, Runner, converted_blocks, is_converted
from momentumnet.streams.roles import offloaded, recomputed

VERSION = 1
_FIELDS = {"version", "model", "containers", "streams", "recomputed"}
# Plain options of a stream, by the names that its constructor and its attributes have.
_OPTIONS = ("arithmetic", "backward", "final_velocity", "branch_is_output", "kept")
_STREAM_FIELDS = {"name", "blocks", "arguments", "initial_velocity", *_OPTIONS}
# Only of a stream that carries several tensors; those that older versions have described carry one.
_COMPANIONS = "companions"
# What moves a stream: one of them.
_RULE_FIELDS = ("gamma", "coupling")
# Only where a plan moves activations to host memory.
_OFFLOADED = "offloaded"
_OFFLOADED_FIELDS = {"names", "settled_behind", "input_stays"}
# Only where the ``forward`` of modules is called, and not they themselves.
_BY_FORWARD = "by_forward"


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
        **({_OFFLOADED: offloaded_there} if offloaded_there else {}),
        **({_BY_FORWARD: by_forward} if by_forward else {}),
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
    _check(description)
    _check_fits(model, description)
    _check_velocity(description["streams"], velocity)
    runners = [_stream(found, velocity) for found in description["streams"]]
    units = [
        Offload(found["names"], found["settled_behind"], input_stays=found["input_stays"])
        for found in description.get(_OFFLOADED, ())
    ]
    roles = [*recomputed(description["recomputed"]), *offloaded(units)]
    return runners, roles, description.get(_BY_FORWARD, [])


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
    plain = {option: getattr(stream, option) for option in _OPTIONS}
    companions = [{"arguments": list(one.arguments), "outputs": list(one.outputs)} for one in stream.companions]
    return {
        "name": stream.name,
        "blocks": names,
        "arguments": None if stream.arguments is None else list(stream.arguments),
        **rule_of(stream),
        "initial_velocity": velocity,
        **plain,
        **({_COMPANIONS: companions} if companions else {}),
    }


def rule_of(stream: MomentumStream) -> dict[str, Any]:
    """What a stream's description says of its rule: its gamma, or its coupling."""
    if isinstance(stream, CoupledStream):
        return {"coupling": couplings.describe(stream.rule)}
    return {"gamma": str(stream.gamma)}


def _stream(found: Mapping[str, Any], velocity: str | nn.Module | None) -> MomentumStream:
    options = {"arguments": found["arguments"], **{option: found[option] for option in _OPTIONS}}
    options["companions"] = [
        Companion(tuple(one["arguments"]), tuple(one["outputs"])) for one in found.get(_COMPANIONS, ())
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


def _check(description: Mapping[str, Any]) -> None:
    if not isinstance(description, Mapping) or "version" not in description:
        raise ConversionError(f"like= takes what momentumnet.describe returned, got {description!r}")
    if description["version"] != VERSION:
        raise ConversionError(
            f"the description has version {description['version']!r}, and this version of momentumnet reads version "
            f"{VERSION}; convert with the momentumnet that wrote it"
        )
    if description.keys() - {_OFFLOADED, _BY_FORWARD} != _FIELDS:
        raise ConversionError(f"a description holds {sorted(_FIELDS)}, got {sorted(map(str, description))}")
    streams, recomputed_there, containers = (description[field] for field in ("streams", "recomputed", "containers"))
    are_lists = _is_list(streams) and _is_list(recomputed_there)
    if not are_lists or not isinstance(containers, Mapping) or (containers and not streams):
        raise ConversionError(
            "a description holds a list of streams and a list of what is recomputed, and for those streams the "
            f"sizes of containers by name; got {streams!r}, {recomputed_there!r} and {containers!r}"
        )
    for found in streams:
        fields = found.keys() - {_COMPANIONS} if isinstance(found, Mapping) else set()
        if not any(fields == _STREAM_FIELDS | {rule} for rule in _RULE_FIELDS):
            expected = f"{sorted(_STREAM_FIELDS)} and one of {', '.join(_RULE_FIELDS)}"
            raise ConversionError(f"the description of a stream holds {expected}, got {found!r}")
        if "coupling" in found and found["initial_velocity"] is not None:
            raise ConversionError(f"a stream that moves by another coupling has no initial velocity, got {found!r}")
    offloaded_there = description.get(_OFFLOADED, [])
    _check_offloaded(offloaded_there)
    units = (found["names"] for found in offloaded_there)
    by_forward = [description[_BY_FORWARD]] if _BY_FORWARD in description else []
    for names in [*recomputed_there, *units, *by_forward, *(found["blocks"] for found in streams)]:
        if not _is_list(names) or not names or not all(isinstance(name, str) for name in names):
            raise ConversionError(f"modules are described by a list of their names, got {names!r}")
    for found in streams:
        _check_arguments(found["arguments"], found["blocks"])
        if _COMPANIONS in found:
            _check_companions(found[_COMPANIONS], found)


def _check_offloaded(units: Any) -> None:
    """Of each unit that goes to host memory its names, that of the module behind, and whether its input stays."""
    for found in units if _is_list(units) else [units]:
        is_complete = isinstance(found, Mapping) and found.keys() == _OFFLOADED_FIELDS
        if not is_complete or not isinstance(found["settled_behind"], (str, type(None))):
            raise ConversionError(
                f"what goes to host memory is described by a list of {sorted(_OFFLOADED_FIELDS)}, got {found!r}"
            )


def _check_companions(companions: Any, found: Mapping[str, Any]) -> None:
    """For each further tensor that a stream carries: where its blocks take it, and where they return it."""
    if found["arguments"] is None or not _is_list(companions):
        raise ConversionError(f"a stream that carries several tensors knows its arguments, got {found!r}")
    for one in companions:
        is_complete = isinstance(one, Mapping) and one.keys() == {"arguments", "outputs"}
        outputs: Any = one["outputs"] if is_complete else None
        fits = _is_list(outputs) and len(outputs) == len(found["blocks"]) and {*map(type, outputs)} <= {int}
        if not fits or one["arguments"] is None or min(outputs) < 1:
            raise ConversionError(
                "a further tensor of a stream is described by its 'arguments' and 'outputs' for each block, the latter "
                f"a place behind the first; got {one!r} for the blocks {found['blocks']!r}"
            )
        _check_arguments(one["arguments"], found["blocks"])


def _check_arguments(arguments: Any, blocks: Any) -> None:
    """For each block of a stream a position or a keyword; None where that is not known."""
    if arguments is None:
        return
    if not _is_list(arguments) or len(arguments) != len(blocks) or not {*map(type, arguments)} <= {int, str}:
        raise ConversionError(
            f"for each block of a stream its stream argument is described, by position or keyword; got {arguments!r} "
            f"for the blocks {blocks!r}"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _check_fits(model: nn.Module, description: Mapping[str, Any]) -> None:
    """The model has what the description names, and no further blocks beside it."""
    there = {name for name, _ in model.named_modules()}
    wanted = [name for found in description["streams"] for name in found["blocks"]]
    wanted += [name for names in description["recomputed"] for name in names]
    for found in description.get(_OFFLOADED, ()):
        wanted += [*found["names"], *([found["settled_behind"]] if found["settled_behind"] is not None else [])]
    wanted += description.get(_BY_FORWARD, ())
    missing = [name for name in dict.fromkeys(wanted) if name not in there]
    faults = [f"it has no module {quoted(missing)}"] if missing else []
    if not missing:
        faults += differences(model, {path: size for path, size in description["containers"].items() if path in there})
    if faults:
        raise ConversionError(
            f"this {type(model).__name__} does not fit the description of a {description['model']}: "
            f"{'; '.join(faults)}. Give the model that was converted, built as it was then"
        )


def _check_velocity(streams: Sequence[Mapping[str, Any]], velocity: str | nn.Module | None) -> None:
    """A module for the initial velocity cannot be described: it has to be given, where there was one."""
    has_module = any(found["initial_velocity"] == "module" for found in streams)
    if has_module and not isinstance(velocity, nn.Module):
        raise ConversionError(
            "the described model had a module for its initial velocity; give one that is built alike as "
            "initial_velocity=, and its parameters come with the state dict"
        )
    if velocity is not None and not has_module:
        raise ConversionError(
            "initial_velocity was given beside like=, and the described model had no module for it; leave it out"
        )
