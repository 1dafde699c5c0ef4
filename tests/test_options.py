"""Switches of public functions: text, numbers and None are refused, which would count as true or false in silence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

import momentumnet as mn
from momentumnet import init, landscape, optim, prune
from momentumnet.options import is_finite, is_whole, positive, true_or_false, whole
from momentumnet.prune import LotteryTicket, TrainingLog

INPUTS = torch.ones(2, 5, 8)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def loss(output: Any, target: Any) -> torch.Tensor:
    return output.square().mean()


def train(model: nn.Module, log: TrainingLog) -> None:
    raise AssertionError("trained in spite of an option that cannot be")


def lottery() -> LotteryTicket:
    return LotteryTicket(nn.Linear(4, 4), train, rounds=1)


BATCHES = [(INPUTS, INPUTS)]
# Each public function that has switches, on arguments that do.
CALLS: dict[str, Callable[..., Any]] = {
    "convert": lambda **option: mn.convert(encoder(), INPUTS, budget="1MiB", **option),
    "plan": lambda **option: mn.plan(encoder(), INPUTS, budget="1MiB", **option),
    "largest_batch": lambda **option: mn.largest_batch(
        encoder(), lambda n: INPUTS[:1].repeat(n, 1, 1), 2**20, **option
    ),
    "revert": lambda **option: mn.revert(mn.convert(encoder(), INPUTS), **option),
    "MomentumNet": partial(mn.MomentumNet, [nn.Linear(4, 4)], 0.9, init_function=nn.Linear(4, 4)),
    "transform_to_momentumnet": lambda **option: mn.transform_to_momentumnet(encoder(), ["layers"], **option),
    "optim.SAM": lambda **option: optim.SAM(encoder().parameters(), SGD, lr=0.1, **option),
    "optim.Extragradient": lambda **option: optim.Extragradient(encoder().parameters(), SGD, lr=0.1, **option),
    "init.fixup_": lambda **option: init.fixup_(encoder(), INPUTS, **option),
    "init.tfixup_": lambda **option: init.tfixup_(encoder(), **option),
    "init.metainit_": lambda **option: init.metainit_(encoder(), loss, BATCHES, steps=1, **option),
    "init.gradinit_": lambda **option: init.gradinit_(encoder(), loss, BATCHES, steps=1, **option),
    "landscape.sharpness": lambda **option: landscape.sharpness(encoder(), loss, BATCHES[0], **option),
    "landscape.filter_normalised_direction": lambda **o: landscape.filter_normalised_direction(encoder(), **o),
    "prune.LotteryTicket.run": lambda **option: lottery().run(**option),
    "prune.LotteryTicket.ticket": lambda **option: lottery().ticket(0, **option),
}


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """All public functions, classes and their methods, by their names below the package."""
    for room, prefix in ((mn, ""), (init, "init."), (landscape, "landscape."), (optim, "optim."), (prune, "prune.")):
        for name in room.__all__:
            found = getattr(room, name)
            if inspect.isclass(found):
                yield from (
                    (f"{prefix}{name}.{method}", function)
                    for method, function in vars(found).items()
                    if inspect.isfunction(function) and not method.startswith("_")
                )
            if inspect.isfunction(found) or (inspect.isclass(found) and "__init__" in vars(found)):
                yield f"{prefix}{name}", found


def switches() -> list[tuple[str, str]]:
    found = []
    for name, function in public():
        if inspect.isclass(function) and hasattr(function, "__dataclass_fields__"):
            continue  # made by the package
        parameters = inspect.signature(function).parameters.values()
        found += [(name, parameter.name) for parameter in parameters if parameter.annotation in (bool, "bool")]
    return [(name, option) for name, option in found if option != "prepend"]  # PyTorch's own hooks


@pytest.mark.parametrize("value", ["no", 0, None])
@pytest.mark.parametrize(("name", "option"), switches())
def test_a_switch_is_true_or_false(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be True or False, got {value!r}"):
        CALLS[name](**{option: value})


def test_all_have_been_found() -> None:
    assert CALLS.keys() == {name for name, _ in switches()}


def test_a_model_is_not_converted_in_place_for_a_word() -> None:
    model = encoder()
    with pytest.raises(ValueError, match="inplace"):
        mn.convert(model, INPUTS, inplace="no")  # type: ignore[arg-type]
    with pytest.raises(mn.ConversionError, match="nothing to revert"):
        mn.revert(model)


def test_a_group_of_sam_says_true_or_false_itself() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "adaptive": "no"}]
    with pytest.raises(ValueError, match="adaptive must be True or False, got 'no'"):
        optim.SAM(groups, SGD, lr=0.1)


@pytest.mark.parametrize("value", ["0.1", None, True, float("nan"), float("inf"), 10**400, torch.ones(2), [1.0], 1j])
def test_what_is_no_finite_number(value: Any) -> None:
    assert not is_finite(value)
    with pytest.raises(ValueError, match="rho must be a finite number above 0"):
        positive("rho", value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: landscape.sharpness(encoder(), loss, BATCHES[0], generator=0),  # type: ignore[arg-type]
        lambda: init.fixup_(encoder(), INPUTS, generator=0),  # type: ignore[arg-type]
        lambda: init.tfixup_(encoder(), generator=0),  # type: ignore[arg-type]
        lambda: prune.random_masks(encoder(), fraction=0.5, generator=0),  # type: ignore[arg-type]
        lambda: prune.shuffled_masks({}, generator=0),  # type: ignore[arg-type]
    ],
)
def test_a_seed_is_no_generator(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"generator must be a torch.Generator or None, got 0; make one"):
        call()


NAMES: Any = (name for name in ["layers.0"])  # gone once it has been looked at


@pytest.mark.parametrize("names", ["layers", NAMES, None])
def test_names_are_several(names: Any) -> None:
    """Of a generator nothing would have been left out: it was at its end when the weights were looked at."""
    with pytest.raises(ValueError, match="skip must be a collection of names"):
        prune.prunable(encoder(), skip=names)
    with pytest.raises(ValueError, match="skip must be a collection of names"):
        LotteryTicket(nn.Linear(4, 4), train, skip=names)
    with pytest.raises(ValueError, match="controls must be a collection of names"):
        LotteryTicket(nn.Linear(4, 4), train, controls=names)
    with pytest.raises(mn.ConversionError, match=r"sub_layers is .*; expected a non-empty sequence of container paths"):
        mn.transform_to_momentumnet(encoder(), names)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mn.convert(encoder(), streams="layers"), "streams is 'layers'; expected a non-empty sequence"),
        (lambda: mn.transform_to_momentumnet(encoder(), []), r"sub_layers is \[\]; expected a non-empty sequence"),
        (lambda: mn.revert("encoder"), "model is of type str; expected an nn.Module"),
    ],
)
def test_what_is_not_converted(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(mn.ConversionError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mn.ReversibleSequential(nn.Linear(2, 2), split_dim="1"), "split_dim must be a dimension"),  # type: ignore[arg-type]
        (lambda: mn.ReversibleSequential(nn.Linear(2, 2), split_dim=True), "split_dim must be a dimension"),
        (lambda: optim.SAM(encoder().parameters(), SGD, lr=0.1, model="x"), "model must be the network"),  # type: ignore[arg-type]
        (lambda: LotteryTicket(nn.Linear(4, 4), train, seed="1"), "seed must be a whole number, got '1'"),  # type: ignore[arg-type]
        (lambda: optim.warmup(SGD(encoder().parameters()), 3, after="cosine"), "after must be a scheduler"),  # type: ignore[arg-type]
    ],
)
def test_other_options(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", [True, 2.0, "2", None, torch.tensor(2)])
def test_what_is_no_whole_number(value: Any) -> None:
    assert not is_whole(value)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        whole("steps", value)


def test_numbers_of_numpy() -> None:
    whole("steps", np.int64(3))
    positive("rho", np.float32(0.1))
    weight = nn.Parameter(torch.ones(2))
    sam = optim.SAM([weight], SGD, lr=0.1, rho=np.float32(0.5), adaptive=True, eta=np.float32(0.0))
    weight.grad = torch.ones(2)
    assert sam.first_step()
    assert torch.allclose(weight, torch.full((2,), 1 + 0.5 / 2**0.5))
    assert type(sam.param_groups[0]["rho"]) is float


def test_switches_of_numpy() -> None:
    true_or_false(inplace=np.bool_(True))
    weight = nn.Parameter(torch.ones(2))
    sam = optim.SAM([weight], SGD, lr=0.1, adaptive=np.bool_(True))
    assert type(sam.param_groups[0]["adaptive"]) is bool


NEEDS_VALUES: dict[str, Callable[[nn.Module, torch.Tensor], Any]] = {
    "kaiming_": lambda model, x: init.kaiming_(model),
    "xavier_": lambda model, x: init.xavier_(model),
    "fixup_": lambda model, x: init.fixup_(model, x, remove_normalization=True),
    "tfixup_": lambda model, x: init.tfixup_(model),
    "gradinit_": lambda model, x: init.gradinit_(model, loss, [(x, x)]),
    "metainit_": lambda model, x: init.metainit_(model, loss, [(x, x)]),
    "gradient_quotient": lambda model, x: init.gradient_quotient(model, loss, (x, x)),
    "sharpness": lambda model, x: landscape.sharpness(model, loss, (x, x)),
    "hessian_top_eigenvalues": lambda model, x: landscape.hessian_top_eigenvalues(model, loss, (x, x)),
    "magnitude_masks": lambda model, x: prune.magnitude_masks(model, fraction=0.5),
    "random_masks": lambda model, x: prune.random_masks(model, fraction=0.5),
    "ChannelStructure": prune.ChannelStructure,
    "BlockStructure": prune.BlockStructure,
    "LotteryTicket": lambda model, x: LotteryTicket(model, train),
}


@pytest.mark.parametrize("name", NEEDS_VALUES)
def test_what_needs_values_refuses_parameters_without(name: str) -> None:
    """It ended in "Tensor.item() cannot be called on meta tensors"."""
    with pytest.raises(ValueError, match=r"on the meta device and have no values: .*model\.to_empty"):
        NEEDS_VALUES[name](encoder().to("meta"), INPUTS.to("meta"))
