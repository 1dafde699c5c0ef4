"""Whether a model is the one that a plan was made for: the blocks of its streams have to be, of the rest is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from momentumnet.listing import quoted
from momentumnet.planner.plans.parameter_bytes import differs, parameter_bytes_of, trained_in
from momentumnet.streams.blocks import containers

if TYPE_CHECKING:
    from momentumnet.planner.plans.training_plan import TrainingPlan

# Where torch.compile, PyTorch's checkpoint_wrapper and FullyShardedDataParallel hold a module that computes as before.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def faults_of(model: nn.Module, plan: TrainingPlan) -> list[str]:
    """In words, why a model cannot follow a plan: modules that it lacks or has beside, blocks of another class.

    A block without a skip would move by the rule of those with one, and the network compute something else.
    """
    there = {name for name, _ in model.named_modules()}
    blocks = [name for stream in plan.streams for name in stream.blocks]
    named = [*(name for unit in plan.units for name in unit.names), *blocks]
    named += [*plan.by_forward, *(path for path, _ in plan.containers)]
    missing = [name for name in dict.fromkeys(named) if name not in there]
    if missing:
        return [f"{type(model).__name__} has no module {quoted(missing)}"]
    return containers.differences(model, dict(plan.containers)) or _of_other_classes(model, plan, set(blocks))


def differences(model: nn.Module, plan: TrainingPlan) -> list[str]:
    """In words, what a model that can follow a plan has otherwise, so that the plan's bytes are not those of its step.

    As far as it is known: a plan of an earlier version may not say, and lazy parameters have no size yet.
    """
    found = _of_other_classes(model, plan, {name for name, _ in plan.classes})
    if any(map(is_lazy, model.parameters())):
        return found
    kinds = (
        ("parameters", model.parameters(), plan.parameter_bytes or None),
        ("parameters that take a gradient", trained_in(model), plan.trained_bytes),
    )
    for kind, parameters, planned in kinds:
        size = parameter_bytes_of(parameters)
        # Of the second kind it goes without saying where the first is another.
        if planned is not None and size != planned:
            return [*found, differs(kind, size, planned)]
    return found


def classes_of(model: nn.Module, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The names of these modules' classes."""
    return tuple((name, _class_of(model.get_submodule(name)).__name__) for name in dict.fromkeys(names))


def _of_other_classes(model: nn.Module, plan: TrainingPlan, names: set[str]) -> list[str]:
    """Which of the modules are no longer of their class in the plan, nor of one that is derived from it (as FSDP's)."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, planned in plan.classes:
        kind = _class_of(model.get_submodule(name))
        if name in names and planned not in {base.__name__ for base in kind.__mro__}:
            found.setdefault((kind.__name__, planned), []).append(name)
    return [
        f"{quoted(modules)} {'is' if len(modules) == 1 else 'are'} of class {now}, and "
        f"{'was' if len(modules) == 1 else 'were'} of class {planned} in the plan"
        for (now, planned), modules in found.items()
    ]


def _class_of(module: nn.Module) -> type[nn.Module]:
    """The class that says what it computes: not that of a wrapper, nor the one that parametrizations have made."""
    while (inner := next(filter(None, map(module._modules.get, _WRAPPED)), None)) is not None:
        module = inner
    kind: type[nn.Module] = type_before_parametrizations(module)
    return kind
