"""Turn a residual network into a Momentum ResNet, and back: plan, then apply."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from momentumnet import model_config
from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.core.stream import MomentumStream
from momentumnet.description import from_description
from momentumnet.errors import ConversionError
from momentumnet.planning import DEFAULT_GAMMA, check_options, conversion_plan, step_plan
from momentumnet.streams.by_hand import children_of, named_by_hand
from momentumnet.streams.converted import Role, converted_blocks, is_converted, release, streams_of
from momentumnet.streams.copies import copy_of
from momentumnet.streams.plan import AUTO
from momentumnet.streams.roles import apply, recomputed

if TYPE_CHECKING:
    from momentumnet.planner.training_plan import TrainingPlan

Model = TypeVar("Model", bound=nn.Module)


def convert(
    model: Model,
    example_inputs: Any = None,
    *,
    gamma: float | Fraction = DEFAULT_GAMMA,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    backward: str = "auto",
    initial_velocity: str | nn.Module | None = None,
    final_velocity: str = "flush",
    others: str = "keep",
    spare: int = 0,
    budget: int | str | None = None,
    plan: TrainingPlan | None = None,
    like: Mapping[str, Any] | None = None,
    inplace: bool = False,
) -> Model:
    r"""Turn every residual stream of the model into a momentum stream.

    Each block's branch ``f(x) = block(x) - x`` drives a velocity, and the backward pass recomputes the activations by
    running the blocks backwards, exactly:

        v <- gamma v + (1 - gamma) f(x);  x <- x + v

    The default, gamma 1/8 with the flush, keeps what a pretrained network computes nearly as it is; train from scratch
    at 0.9.

    Args:
        model: the network. Its class, attributes and state-dict keys stay as they are.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments of the model; they
            are run once to find the streams. None if ``streams`` names them by hand.
        gamma: in [0, 1], rounded to the nearest n/d with d <= 128. At 0 the network computes what it always did, with
            stored activations. 1 needs ``final_velocity="drop"``.
        streams: container paths to restrict to, e.g. ``["layer3", "encoder.layers"]``. Without example inputs, every
            child of each container is taken as a block.
        arithmetic: "exact" (fixed point, bit for bit reversible) or "float" (plain inverse; warns where its error
            passes 1e-3).
        backward: how a block's activations come to its backward, all of the same bits: "reversible" (recomputed from an
            input that the stream's state gives again), "checkpointed" (from an input that is kept), "stored" (ordinary
            autograd with the same arithmetic: the reference), or "auto": reversible, but for streams of so few blocks
            that a state would hold more than their inputs. (Streams that are named by
            hand are reversible.)
        initial_velocity: None (zero), "branch" (the first block's branch), or a module v0 = module(x0), registered as
            ``initial_velocity`` of each stream's first block.
        final_velocity: "flush" adds gamma/(1-gamma) v at the end of the stream: what the velocity still holds back;
            "drop" leaves it out, as the paper does.
        others: "keep", or "checkpoint" to recompute the composite modules outside the streams too, and the chains of
            other layers there that end in norms, activations and pooling (a ResNet's stem).
        spare: bytes that a step with inputs like the example's may keep more than it must. The blocks and modules that
            run last keep their activations as long as these bytes suffice, which saves the time of their recompute;
            backward frees them first, so that the peak grows by ``spare`` at most.
        budget: the most bytes that a step like the example may allocate at once, see `plan`: for each block and module
            is chosen what takes the least time in them.
        plan: a plan that ``plan(..., budget=...)`` has made for this model, to be followed. Without example inputs, and
            with no other option but ``final_velocity`` and ``initial_velocity``.
        like: what `describe` returned of another converted model: the model is converted as that one was, without
            example inputs. It says all the rest, so give no other option (but a module as ``initial_velocity``, where
            it had one). `load_training_state` then gives the scales that the other one had.
        inplace: change this model (and its ``config``, see below) instead of a copy.

    A model with a ``config`` that is saved beside its weights, as those of transformers have, gets its description
    there, as ``config.momentumnet``, so that a saved checkpoint says what it is; `revert` takes it out.

    Returns:
        The converted model: a deep copy unless ``inplace``.

    Raises:
        ConversionError: no stream found, or one that cannot be carried; says what was looked at and why. Or the model
            does not fit the description.
        ValueError: an option has a value that it does not take.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import momentumnet as mn
        >>> layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> x = torch.randn(2, 5, 16)
        >>> converted = mn.convert(model, x)
        >>> converted(x).sum().backward()

    References:
        Sander, Ablin, Blondel, Peyre: Momentum Residual Neural Networks, ICML 2021, arXiv 2102.07870, equation 4.
    """
    if is_converted(model):
        raise ConversionError("the model holds converted blocks already; call momentumnet.revert on it first")
    options: dict[str, Any] = {"arithmetic": arithmetic, "backward": backward, "others": others, "spare": spare}
    given = {**options, "example_inputs": example_inputs, "gamma": gamma, "streams": streams, "budget": budget}
    if like is not None:
        _check_nothing_else("like", {**given, "final_velocity": final_velocity, "plan": plan})
        runners, roles = from_description(model, like, initial_velocity)
    elif plan is not None or budget is not None:
        if plan is None:
            planned = {name: given[name] for name in ("gamma", "streams", "arithmetic", "backward", "others", "spare")}
            plan = step_plan(model, example_inputs, budget, **planned)  # type: ignore[arg-type]
        else:
            _check_nothing_else("plan", given)
        from momentumnet.planner.following import from_plan

        runners, roles = from_plan(model, plan, final_velocity)
        _set_initial_velocity(runners, initial_velocity)
    else:
        runners, roles = _found(model, example_inputs, exact_gamma(gamma), streams, final_velocity, options)
        _set_initial_velocity(runners, initial_velocity)
    target = model if inplace else copy_of(model)
    apply(target, runners, roles)
    model_config.note(target)
    return target


def _found(
    model: nn.Module,
    example_inputs: Any,
    gamma: Fraction,
    streams: Sequence[str] | None,
    final_velocity: str,
    options: dict[str, Any],
) -> tuple[list[MomentumStream], list[Role]]:
    """The streams in the example inputs, or those that are named, and the roles of what is recomputed outside them."""
    check_options(options["others"], options["spare"], options["backward"])
    found: list[tuple[str, tuple[str, ...], dict[str, Any]]]
    roles: list[Role] = []
    if example_inputs is None:
        paths = named_by_hand(streams, options["others"], options["spare"])
        backward = "reversible" if options["backward"] == AUTO else options["backward"]
        found = [(path, children_of(model, path), {"backward": backward}) for path in paths]
    else:
        planned = conversion_plan(model, example_inputs, gamma=gamma, streams=streams, **options)
        found = [
            (
                stream.path,
                stream.blocks,
                {
                    "magnitude": stream.magnitude or None,
                    "start": stream.start_magnitude or None,
                    "spread": stream.spread if stream.magnitude else None,
                    "kept": kept,
                    "backward": backward,
                    "arguments": stream.arguments,
                },
            )
            for stream, kept, backward in zip(planned.discovery.streams, planned.kept, planned.backwards, strict=True)
        ]
        roles = recomputed(planned.recomputed)
    settings = {"arithmetic": options["arithmetic"], "final_velocity": final_velocity}
    runners = [
        MomentumStream(path or "(root)", blocks, gamma, **settings, **measured) for path, blocks, measured in found
    ]
    return runners, roles


def revert(model: Model, *, inplace: bool = False) -> Model:
    """The original network back, with the parameters that the converted one has now.

    Args:
        model: a model that `convert` or `transform_to_momentumnet` returned.
        inplace: change this model instead of a copy.

    Raises:
        ConversionError: the model holds no converted block.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        >>> original = mn.revert(mn.convert(model, torch.randn(2, 5, 16)))
    """
    target = model if inplace else copy_of(model)
    blocks = [block for block, _ in converted_blocks(target)]
    if not blocks:
        raise ConversionError("the model holds no converted block; there is nothing to revert")
    for block in blocks:
        release(block)
    model_config.forget(target)
    return target


def set_gamma(model: nn.Module, gamma: float | Fraction) -> None:
    """Change gamma of every momentum stream in the model, from the next forward on.

    Args:
        model: a converted model, or one that holds `MomentumNet` modules.
        gamma: in [0, 1], rounded to the nearest n/d with d <= 128.

    Raises:
        ConversionError: the model holds no momentum stream.
        ValueError: gamma is outside [0, 1], or 1 with the flush.

    Example:
        >>> import torch
        >>> import momentumnet as mn
        >>> net = mn.MomentumNet([torch.nn.Linear(4, 4)] * 3, gamma=0.9, use_backprop=False)
        >>> mn.set_gamma(net, 0.5)
        >>> net.gamma
        0.5
    """
    streams = streams_of(model)
    if not streams:
        raise ConversionError("the model holds no momentum stream; convert it first")
    for stream in streams:
        stream.set_gamma(gamma)
    model_config.renew(model)


def _check_nothing_else(option: str, given: dict[str, Any]) -> None:
    """Beside a description or a plan nothing is given: it would be ignored."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(convert).parameters.items()}
    others = [name for name, value in given.items() if value is not defaults[name] and value != defaults[name]]
    if others:
        raise ConversionError(
            f"{option}= says how the model is converted, and {', '.join(others)} was given, too; leave out one of them"
        )


def _set_initial_velocity(runners: Sequence[MomentumStream], initial_velocity: str | nn.Module | None) -> None:
    if initial_velocity is None:
        return
    for runner in runners:
        if initial_velocity == "branch":
            runner.branch_first = True
        elif isinstance(initial_velocity, nn.Module):
            runner.velocity_module = initial_velocity
        else:
            raise ValueError(f"initial_velocity must be None, 'branch' or an nn.Module, got {initial_velocity!r}")
