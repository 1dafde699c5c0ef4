"""Turn a residual network into a Momentum ResNet, and back: plan, then apply."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeVar

from torch import nn

from momentumnet.arithmetic.fixed_point import exact_gamma
from momentumnet.core.checkpoint import Checkpoint, CheckpointChain
from momentumnet.core.stream import MomentumStream
from momentumnet.errors import ConversionError
from momentumnet.streams.converted import VELOCITY_NAME, Role, assign, converted_blocks, release, streams_of
from momentumnet.streams.copies import copy_of
from momentumnet.streams.discover import discover
from momentumnet.streams.plan import Plan

Model = TypeVar("Model", bound=nn.Module)

OTHERS = ("keep", "checkpoint")


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    gamma: float | Fraction = 0.125,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    backward: str = "reversible",
    others: str = "keep",
    spare: int = 0,
) -> Plan:
    """What `convert` with the same arguments will do; the model is left as it is.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        gamma: see `convert`.
        streams: see `convert`.
        arithmetic: see `convert`.
        backward: see `convert`.
        others: see `convert`.
        spare: see `convert`.

    Returns:
        The plan: ``print`` it, or read ``rows``, ``saved_before`` and ``saved_after`` (bytes).

    Raises:
        ConversionError: no stream was found; the message says what was looked at.
        ValueError: an option has a value that it does not take.

    Example:
        >>> import torch, torchvision
        >>> from momentumnet.convert import plan
        >>> print(plan(torchvision.models.resnet50(), torch.randn(1, 3, 64, 64)))  # doctest: +SKIP
    """
    _check_options(others, spare, backward)
    found = discover(model, example_inputs, streams=streams)
    if not found.streams:
        raise ConversionError(_nothing_found(model, found.rejections))
    return Plan(found, exact_gamma(gamma), backward, arithmetic, others, spare)


def convert(
    model: Model,
    example_inputs: Any = None,
    *,
    gamma: float | Fraction = 0.125,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    backward: str = "reversible",
    initial_velocity: str | nn.Module | None = None,
    final_velocity: str = "flush",
    others: str = "keep",
    spare: int = 0,
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
        backward: "reversible" or "stored" (ordinary autograd with the same arithmetic: the reference).
        initial_velocity: None (zero), "branch" (the first block's branch), or a module v0 = module(x0), registered as
            ``initial_velocity`` of each stream's first block.
        final_velocity: "flush" adds gamma/(1-gamma) v at the end of the stream: what the velocity still holds back;
            "drop" leaves it out, as the paper does.
        others: "keep", or "checkpoint" to recompute the composite modules outside the streams too, and the chains of
            other layers there that end in norms, activations and pooling (a ResNet's stem).
        spare: bytes that a step with inputs like the example's may keep more than it must. The blocks and modules that
            run last keep their activations as long as these bytes suffice, which saves the time of their recompute;
            backward frees them first, so that the peak grows by ``spare`` at most.
        inplace: change this model instead of a copy.

    Returns:
        The converted model: a deep copy unless ``inplace``.

    Raises:
        ConversionError: no stream found, or one that cannot be carried; says what was looked at and why.
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
    settings: dict[str, Any] = {"arithmetic": arithmetic, "backward": backward}
    ratio = exact_gamma(gamma)
    _check_options(others, spare, backward)
    if any(True for _ in converted_blocks(model)):
        raise ConversionError("the model holds converted blocks already; call momentumnet.revert on it first")
    if example_inputs is None:
        found: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
            (path, children_of(model, path), {}) for path in _named_by_hand(streams, others, spare)
        ]
        recomputed: list[Role] = []
    else:
        planned = plan(model, example_inputs, gamma=ratio, streams=streams, **settings, others=others, spare=spare)
        found = [
            (
                stream.path,
                stream.blocks,
                {
                    "magnitude": stream.magnitude,
                    "start": stream.start_magnitude or None,
                    "spread": stream.spread,
                    "kept": kept,
                },
            )
            for stream, kept in zip(planned.discovery.streams, planned.kept, strict=True)
        ]
        recomputed = _recomputed(planned)
    runners = [
        MomentumStream(path or "(root)", blocks, ratio, final_velocity=final_velocity, **measured, **settings)
        for path, blocks, measured in found
    ]
    _set_initial_velocity(runners, initial_velocity)
    target = model if inplace else copy_of(model)
    apply(target, runners, recomputed)
    return target


def apply(model: nn.Module, runners: Sequence[MomentumStream], recomputed: Sequence[Role] = ()) -> None:
    """Give every block of the streams its role, and every module outside that is to be recomputed."""
    taken: dict[str, str] = {}
    for runner in runners:
        for name in dict.fromkeys(runner.blocks):
            if name in taken:
                raise ConversionError(f"block {name!r} stands in two streams, {taken[name]!r} and {runner.name!r}")
            taken[name] = runner.name
        if runner.velocity_module is not None and isinstance(model.get_submodule(runner.blocks[0]), nn.Sequential):
            raise ConversionError(
                f"the first block {runner.blocks[0]!r} of stream {runner.name!r} is an nn.Sequential, which would call "
                "the module given as initial_velocity as one of its own; wrap the block in a module with a forward of "
                "its own"
            )
    roles = [Role(name, runner) for runner in runners for name in dict.fromkeys(runner.blocks)]
    roles += recomputed
    for index, role in enumerate(roles):
        try:
            assign(model.get_submodule(role.name), role)
        except ConversionError:
            for earlier in roles[:index]:
                release(model.get_submodule(earlier.name))
            raise
    for runner in runners:
        if runner.velocity_module is not None:
            model.get_submodule(runner.blocks[0]).add_module(VELOCITY_NAME, runner.velocity_module)


def revert(model: Model, *, inplace: bool = False) -> Model:
    """The original network back, with the parameters that the converted one has now.

    Args:
        model: a model that `convert` or `transform_to_momentumnet` returned.
        inplace: change this model instead of a copy.

    Raises:
        ConversionError: the model holds no converted block.

    Example:
        >>> original = mn.revert(converted)  # doctest: +SKIP
    """
    target = model if inplace else copy_of(model)
    blocks = [block for block, _ in converted_blocks(target)]
    if not blocks:
        raise ConversionError("the model holds no converted block; there is nothing to revert")
    for block in blocks:
        release(block)
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
        >>> mn.set_gamma(converted, 0.5)  # doctest: +SKIP
    """
    streams = streams_of(model)
    if not streams:
        raise ConversionError("the model holds no momentum stream; convert it first")
    for stream in streams:
        stream.set_gamma(gamma)


def _recomputed(planned: Plan) -> list[Role]:
    checkpoint, roles = Checkpoint(), []
    for names in planned.recomputed:
        runner = checkpoint if len(names) == 1 else CheckpointChain(names[0], names[-1])
        roles += [Role(name, runner) for name in names]
    return roles


def _check_options(others: str, spare: int, backward: str) -> None:
    if others not in OTHERS:
        raise ValueError(f"others must be one of {', '.join(map(repr, OTHERS))}, got {others!r}")
    if isinstance(spare, bool) or not isinstance(spare, int) or spare < 0:
        raise ValueError(f"spare must be a number of bytes, 0 or more, got {spare!r}")
    if spare and backward == "stored":
        raise ValueError(
            "backward='stored' keeps all activations, so there is nothing to spare; leave out one of the two"
        )


def _named_by_hand(streams: Sequence[str] | None, others: str, spare: int) -> Sequence[str]:
    if not streams:
        raise ConversionError(
            "convert needs example_inputs to find the residual streams, or streams=[...] that names their containers"
        )
    if others == "checkpoint":
        raise ConversionError("others='checkpoint' needs example_inputs, to see which modules lie outside the streams")
    if spare:
        raise ConversionError("spare needs example_inputs, to see how much the blocks keep")
    return streams


def children_of(model: nn.Module, path: str) -> tuple[str, ...]:
    """The names of the container's children, as blocks of a stream named by hand.

    A module that stands in several places has one name, its first, as in ``named_modules``.
    """
    try:
        container = model.get_submodule(path)
    except AttributeError as error:
        names = [name for name, module in model.named_modules() if len(list(module.children())) > 1]
        raise ConversionError(f"the model has no module {path!r}; containers are {names[:20]}") from error
    first_names: dict[int, str] = {}
    for name, child in container._modules.items():
        if child is not None:
            first_names.setdefault(id(child), f"{path}.{name}" if path else name)
    children = tuple(first_names[id(child)] for child in container._modules.values() if child is not None)
    if not children:
        raise ConversionError(f"module {path!r} ({type(container).__name__}) has no children that could be blocks")
    return children


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


def _nothing_found(model: nn.Module, rejections: Sequence[Any]) -> str:
    looked = "\n".join(
        f"  - {r.path or '(root)'} ({', '.join(r.blocks[:4])}{', ...' if len(r.blocks) > 4 else ''}): {r.reason}"
        for r in list(rejections)[:20]
    )
    return (
        f"no residual stream found in {type(model).__name__}. A stream is two or more sibling modules, each mapping a "
        "tensor to the same shape with a skip connection inside, the output of one being the input of the next. "
        + (f"Looked at:\n{looked}" if looked else "No two sibling modules pass a tensor of one shape along.")
    )
