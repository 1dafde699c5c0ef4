"""Whether a description of a converted model is one, and whether a model fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from momentumnet.errors import ConversionError
from momentumnet.listing import quoted
from momentumnet.streams.blocks.containers import differences

VERSION = 1
_FIELDS = {"version", "model", "containers", "streams", "recomputed"}
# Plain options of a stream, by the names that its constructor and its attributes have.
OPTIONS = ("arithmetic", "backward", "final_velocity", "branch_is_output", "kept")
_STREAM_FIELDS = {"name", "blocks", "arguments", "initial_velocity", *OPTIONS}
# Only of a stream that carries several tensors; those that older versions have described carry one.
COMPANIONS = "companions"
# What moves a stream: one of them.
_RULE_FIELDS = ("gamma", "coupling")
# Only where a plan moves activations to host memory.
OFFLOADED = "offloaded"
_OFFLOADED_FIELDS = {"names", "settled_behind", "input_stays"}
# Only where the ``forward`` of modules is called, and not they themselves.
BY_FORWARD = "by_forward"


def check(description: Mapping[str, Any]) -> None:
    """Refuse what is no description of this version, or lacks something.

    Raises:
        ConversionError: it is none.
    """
    if not isinstance(description, Mapping) or "version" not in description:
        raise ConversionError(f"like= takes what momentumnet.describe returned, got {description!r}")
    if description["version"] != VERSION:
        raise ConversionError(
            f"the description has version {description['version']!r}, and this version of momentumnet reads version "
            f"{VERSION}; convert with the momentumnet that wrote it"
        )
    if description.keys() - {OFFLOADED, BY_FORWARD} != _FIELDS:
        raise ConversionError(f"a description holds {sorted(_FIELDS)}, got {sorted(map(str, description))}")
    streams, recomputed_there, containers = (description[field] for field in ("streams", "recomputed", "containers"))
    are_lists = _is_list(streams) and _is_list(recomputed_there)
    if not are_lists or not isinstance(containers, Mapping) or (containers and not streams):
        raise ConversionError(
            "a description holds a list of streams and a list of what is recomputed, and for those streams the "
            f"sizes of containers by name; got {streams!r}, {recomputed_there!r} and {containers!r}"
        )
    for found in streams:
        fields = found.keys() - {COMPANIONS} if isinstance(found, Mapping) else set()
        if not any(fields == _STREAM_FIELDS | {rule} for rule in _RULE_FIELDS):
            expected = f"{sorted(_STREAM_FIELDS)} and one of {', '.join(_RULE_FIELDS)}"
            raise ConversionError(f"the description of a stream holds {expected}, got {found!r}")
        if "coupling" in found and found["initial_velocity"] is not None:
            raise ConversionError(f"a stream that moves by another coupling has no initial velocity, got {found!r}")
    offloaded_there = description.get(OFFLOADED, [])
    _check_offloaded(offloaded_there)
    units = (found["names"] for found in offloaded_there)
    by_forward = [description[BY_FORWARD]] if BY_FORWARD in description else []
    for names in [*recomputed_there, *units, *by_forward, *(found["blocks"] for found in streams)]:
        if not _is_list(names) or not names or not all(isinstance(name, str) for name in names):
            raise ConversionError(f"modules are described by a list of their names, got {names!r}")
    for found in streams:
        _check_arguments(found["arguments"], found["blocks"])
        if COMPANIONS in found:
            _check_companions(found[COMPANIONS], found)


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


def check_fits(model: nn.Module, description: Mapping[str, Any]) -> None:
    """Refuse a model that lacks what the description names, or has further blocks beside it.

    Raises:
        ConversionError: it does not fit.
    """
    there = {name for name, _ in model.named_modules()}
    wanted = [name for found in description["streams"] for name in found["blocks"]]
    wanted += [name for names in description["recomputed"] for name in names]
    for found in description.get(OFFLOADED, ()):
        wanted += [*found["names"], *([found["settled_behind"]] if found["settled_behind"] is not None else [])]
    wanted += description.get(BY_FORWARD, ())
    missing = [name for name in dict.fromkeys(wanted) if name not in there]
    faults = [f"it has no module {quoted(missing)}"] if missing else []
    if not missing:
        faults += differences(model, {path: size for path, size in description["containers"].items() if path in there})
    if faults:
        raise ConversionError(
            f"this {type(model).__name__} does not fit the description of a {description['model']}: "
            f"{'; '.join(faults)}. Give the model that was converted, built as it was then"
        )


def check_velocity(streams: Sequence[Mapping[str, Any]], velocity: str | nn.Module | None) -> None:
    """A module for the initial velocity cannot be described: it has to be given, where there was one.

    Raises:
        ConversionError: it was not, or another one was.
    """
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
