"""Turn a residual network into a Momentum ResNet: plan, then apply."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from momentumnet import couplings
from momentumnet.conversion import optimizer_left_behind
from momentumnet.conversion.planned import Ends, follow, replanning
from momentumnet.conversion.planning import step_plan, tell_of_gamma
from momentumnet.conversion.planning_options import check_gradients, check_offload, check_options, gamma_without_budget
from momentumnet.conversion.unplanned import Parts, parts_found
from momentumnet.core.rules.dr2net import Dr2Net
from momentumnet.core.rules.two_step import TwoStep
from momentumnet.description import model_config
from momentumnet.description.description import from_description
from momentumnet.errors import ConversionError
from momentumnet.listing import quoted
from momentumnet.options import one_of, true_or_false
from momentumnet.source_tree import warn_once as warn_of_kernels_left_behind
from momentumnet.streams.blocks.converted import converted_blocks, is_converted
from momentumnet.streams.blocks.copies import copy_of
from momentumnet.streams.blocks.wrapped import check_is_module

if TYPE_CHECKING:
    from momentumnet.planner.plans.batch_watch import Again
    from momentumnet.planner.plans.training_plan import TrainingPlan

Model = TypeVar("Model", bound=nn.Module)
REPLANS = ("never", "auto")
# The options that a plan within a budget takes, too.
STEPWISE = ("arithmetic", "backward", "others", "gamma", "streams", "spare", "offload", "gradients")


def convert(
    model: Model,
    example_inputs: Any = None,
    *,
    gamma: float | Fraction | None = None,
    coupling: str | Dr2Net = couplings.MOMENTUM,
    streams: Sequence[str] | None = None,
    arithmetic: str = "exact",
    backward: str = "auto",
    initial_velocity: str | nn.Module | None = None,
    final_velocity: str = "flush",
    others: str = "keep",
    spare: int = 0,
    budget: int | str | None = None,
    plan: TrainingPlan | None = None,
    replan: str = "never",
    offload: bool = False,
    gradients: str = "anew",
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
            stored activations. 1 needs ``final_velocity="drop"``. None is 1/8; with a budget, in one process, 0 or 1/8:
            1/8 only where a step takes less time in so many bytes.
        coupling: the rule by which the streams move: "momentum", the one above; "bdia" (averages every two blocks by
            chance in training, and is the network itself in eval mode; one bit a block), "dr2net" or a `Dr2Net` with
            its coefficients (a second residual connection, over two blocks). The others have no velocity: no ``gamma``,
            no ``initial_velocity`` or ``final_velocity``, and no plan for a budget.
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
            ``initial_velocity`` of each stream's first block. (Beside a budget give ``gamma``, too: a plan at 0 has no
            velocity, and is refused.)
        final_velocity: "flush" adds gamma/(1-gamma) v at the end of the stream: what the velocity still holds back;
            "drop" leaves it out, as the paper does.
        others: "keep" (but for residual blocks that stand alone: each is a stream of one, which computes what it always
            did, and is recomputed from what it takes, unless the network is little else), or "checkpoint" to recompute
            the composite modules outside the streams too, and the chains of other layers there that end in norms,
            activations and pooling (a ResNet's stem).
        spare: bytes that a step like the example may take above the least: ``spare=2**30`` is a budget of the least
            and 1 GiB, see `plan`.
        budget: the most bytes that a step like the example may allocate at once, see `plan`: for each block and module
            is chosen what takes the least time in them.
        plan: a plan that ``plan(..., budget=...)`` has made for this model, to be followed. With no other option but
            ``final_velocity`` and ``initial_velocity``. It needs no example inputs: of those that are given is only
            looked whether they are larger than what was planned for, which a line in the log then says.
        replan: beside a budget or ``spare``: what happens when the model is called with larger inputs than the
            example's, so that a step takes more than was planned. "never": a line in the log says so, once. "auto": it
            is planned again for these inputs before the call goes on; parameters stay the same objects. Where no choice
            fits, a warning in the log says so and the least is taken. (Not in several processes, which all have to
            recompute alike: there the line alone.)
        offload: beside a budget or ``spare``, on a CUDA device: activations may also go to host memory, see `plan`.
        gradients: beside a budget or ``spare``: "present" where gradients of parameters are there before each backward,
            as with gradient accumulation, see `plan`.
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
    warn_of_kernels_left_behind()
    true_or_false(inplace=inplace)
    check_is_module(model)
    _check_not_converted(model)
    given: dict[str, Any] = {"arithmetic": arithmetic, "backward": backward, "others": others, "gamma": gamma}
    given |= {"streams": streams, "spare": spare, "offload": offload, "gradients": gradients}
    given |= {"budget": budget, "replan": replan, "coupling": coupling}
    change = _change_of(model, example_inputs, given, Ends(final_velocity, initial_velocity), like, plan)
    target = model if inplace else copy_of(model)
    change.make(target)
    model_config.note(target)
    if not inplace:
        optimizer_left_behind.watch(model, target)
    return target


@dataclass(frozen=True)
class _ByPlan:
    """Conversion as a plan says.

    Attributes:
        plan: that is followed.
        ends: of the streams.
        example_inputs: of which is looked whether they are larger than planned.
        again: what plans again for larger inputs.
    """

    plan: TrainingPlan
    ends: Ends
    example_inputs: Any
    again: Again | None = None

    def make(self, model: nn.Module) -> None:
        """Convert the model, itself."""
        follow(model, self.plan, self.ends, self.again).look(model, self.example_inputs)


def _change_of(
    model: nn.Module,
    example_inputs: Any,
    given: dict[str, Any],
    ends: Ends,
    like: Mapping[str, Any] | None,
    plan: TrainingPlan | None,
) -> Parts | _ByPlan:
    """What the options of `convert` make of a model, all others being in ``given``."""
    rule = _checked_rule(given, ends, is_told=like is not None or plan is not None)
    if like is not None:
        beside = {"example_inputs": example_inputs, "final_velocity": ends.final_velocity, "plan": plan}
        _check_nothing_else("like", {**given, **beside})
        return Parts(*from_description(model, like, ends.initial_velocity))
    if plan is not None:
        _check_nothing_else("plan", given)
        return _ByPlan(plan, ends, example_inputs)
    budget, gamma = given["budget"], given["gamma"]
    if budget is not None or given["spare"]:
        stepwise = {name: given[name] for name in STEPWISE}
        plan = step_plan(model, example_inputs, budget, **stepwise)
        tell_of_gamma(model, plan, gamma)
        again = replanning(budget, stepwise, plan, ends) if given["replan"] == "auto" else None
        return _ByPlan(plan, ends, example_inputs, again)
    options = {name: given[name] for name in ("streams", "arithmetic", "backward", "others")}
    return parts_found(model, example_inputs, rule, gamma_without_budget(gamma), ends, **options)


def _checked_rule(given: dict[str, Any], ends: Ends, *, is_told: bool) -> TwoStep | None:
    """The rule of the coupling, None for momentum, once the options can be and go together.

    ``is_told`` says whether a plan or a description is there already, beside which nothing else may be given.
    """
    check_options(given["others"], given["spare"], given["backward"], given["arithmetic"])
    is_planned = given["budget"] is not None or bool(given["spare"]) or is_told
    _check_beside_plans(given["offload"], given["gradients"], given["replan"], is_planned=is_planned)
    rule = couplings.rule_of(given["coupling"])
    if rule is not None and not is_told:
        velocity = {"initial_velocity": ends.initial_velocity, "final_velocity": ends.final_velocity}
        own = {"gamma": given["gamma"], "spare": given["spare"], **velocity}
        own |= {"budget": given["budget"], "replan": given["replan"]}
        couplings.check_options(given["coupling"], _not_default(own))
    return rule


def _check_not_converted(model: nn.Module) -> None:
    if is_converted(model):
        raise ConversionError(
            f"the model is converted already{_where_converted(model)}; call momentumnet.revert on it first. Parts of a "
            "model may be converted each by itself (momentumnet.convert(model.part, inputs_of_part, inplace=True)), "
            "and the streams of one conversion may have a gamma each (momentumnet.set_gamma(model.part, gamma))"
        )


def _where_converted(model: nn.Module) -> str:
    """In words, which of its children are; nothing of what only keeps its activations."""
    converted = {block for block, _ in converted_blocks(model)}
    names = [name for name, child in model.named_children() if not converted.isdisjoint(child.modules())]
    return f", in {quoted(names)}" if names else ""


def _check_beside_plans(offload: bool, gradients: str, replan: str, *, is_planned: bool) -> None:
    """Options that say what is planned, and when anew."""
    check_offload(offload, is_planned=is_planned)
    check_gradients(gradients, is_planned=is_planned)
    one_of("replan", replan, REPLANS)
    if replan != "never" and not is_planned:
        raise ValueError("replan='auto' plans again, and nothing is planned; give a budget, too, e.g. budget='4GiB'")


def _check_nothing_else(option: str, given: dict[str, Any]) -> None:
    """Beside a description or a plan nothing is given: it would be ignored."""
    others = _not_default(given)
    if others:
        raise ConversionError(
            f"{option}= says how the model is converted, and {', '.join(others)} was given, too; leave out one of them"
        )


def _not_default(given: dict[str, Any]) -> list[str]:
    """Names of the options of `convert` that are not as they are by default."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(convert).parameters.items()}
    return [name for name, value in given.items() if value is not defaults[name] and value != defaults[name]]
