"""The description of a converted model in the ``config`` that is saved with it, where a model has one.

Known by what it does, not by its library: it can be turned into a dict and saved. Those of transformers write further
attributes into ``config.json`` and read them from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from momentumnet import couplings
from momentumnet.core.passes.coupled_stream import CoupledStream
from momentumnet.core.passes.stream import MomentumStream
from momentumnet.description.description import describe, rule_of
from momentumnet.errors import MomentumNetWarning
from momentumnet.streams.blocks.converted import streams_of

NAME = "momentumnet"
# What decides the function that a stream computes; the rest is how.
_OF_THE_FUNCTION = ("blocks", "final_velocity", "initial_velocity", "branch_is_output")


def note(model: nn.Module) -> None:
    """Write the description of a model that has just been converted into its config, if it has one.

    A network without streams, of which only activations are recomputed, computes what its class says and needs none.
    Warns where another description stands there: the weights were trained as another function.
    """
    config = _config_of(model)
    if config is None:
        return
    # By the names below the model that is saved with the config: an adapter around it is taken off.
    description = describe(base_of(model)) if streams_of(model) else None
    earlier = getattr(config, NAME, None)
    if earlier is not None and function_of(earlier) != function_of(description):
        warn_of_another(
            f"the config of this {type(model).__name__}",
            earlier,
            description,
            advice="momentumnet.convert(model, like=model.config.momentumnet) makes the one that was trained",
        )
    if description is None:
        forget(model)
        return
    setattr(config, NAME, description)
    for stream in streams_of(model):
        stream.described_in = config


def warn_of_another(source: str, trained: Any, now: Any, *, advice: str) -> None:
    """Tell that ``source`` describes weights that were trained as another function than the model computes now."""
    warnings.warn(
        f"{source} says that its weights were trained as another Momentum ResNet ({_in_words(trained)}; now "
        f"{_in_words(now)}), so it computes something else. {advice}",
        MomentumNetWarning,
        stacklevel=4,
    )


def renew(model: nn.Module) -> None:
    """Write the streams' gammas, or couplings, of now into each description of them: they have changed.

    The config of a model stands in its parts, too, also in those of a block, and is found inside of a wrapper
    (``DistributedDataParallel``, an adapter). Where a part without it is given, the streams know it.
    """
    found: dict[int, tuple[Any, list[MomentumStream]]] = {}
    for module in model.modules():
        config = _own_config_of(module)
        if config is not None and id(config) not in found:
            found[id(config)] = config, streams_of(module)
    for stream in streams_of(model):
        found.setdefault(id(stream.described_in), (stream.described_in, []))[1].append(stream)
    for config, described in found.values():
        description: Any = getattr(config, NAME, None)
        if function_of(description) is not None:
            renewed = [_renewed(one, described) for one in description["streams"]]
            setattr(config, NAME, {**description, "streams": renewed})


def _renewed(found: Any, streams: Sequence[MomentumStream]) -> Any:
    """A stream's description with the rule that it has now, where it is one of ``streams``.

    It goes by name and blocks, which are those of the conversion; several streams in one container have its name alike,
    and blocks of a model inside of an adapter are described without the adapter's part of their names.
    """
    for stream in streams:
        pairs = zip(stream.blocks, found["blocks"], strict=False)
        is_same = (stream.name, len(stream.blocks)) == (found["name"], len(found["blocks"]))
        if is_same and all(f".{own}".endswith(f".{described}") for own, described in pairs):
            changes = stream.has_gamma or isinstance(stream, CoupledStream)
            return {**found, **rule_of(stream)} if changes else found
    return found


def forget(model: nn.Module) -> None:
    """Take the description out: the model is what its class says again."""
    config = _config_of(model)
    if config is not None and NAME in vars(config):
        delattr(config, NAME)


def base_of(model: nn.Module) -> nn.Module:
    """The model of transformers inside one of peft; any other one itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def _config_of(model: nn.Module) -> Any:
    return _if_saved(getattr(model, "config", None))


def _own_config_of(module: nn.Module) -> Any:
    """The config that stands on this very module, not one to which a wrapper passes on."""
    return _if_saved(vars(module).get("config"))


def _if_saved(config: Any) -> Any:
    is_saved = all(callable(getattr(config, method, None)) for method in ("to_dict", "save_pretrained"))
    return config if is_saved and hasattr(config, "__dict__") else None


def function_of(description: Any) -> Any:
    """What a description says of the function that the network computes; None of one of another version."""
    try:
        return [
            [couplings.in_words(stream), *(stream[field] for field in _OF_THE_FUNCTION)]
            for stream in description["streams"]
        ]
    except (TypeError, KeyError, ValueError):
        return None


def _in_words(description: Any) -> str:
    if description is None:
        return "without streams"
    try:
        streams = [f"{stream['name']} at {couplings.in_words(stream)}" for stream in description["streams"]]
    except (TypeError, KeyError, ValueError):
        return "in another version's words"
    return ", ".join(streams)
