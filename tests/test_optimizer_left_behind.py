"""An optimizer that was made before a copy is converted moves nothing: that is told at its first step that shows it."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.conversion import optimizer_left_behind
from tests.models import WIDTH, Chain, ResidualMLP


def built() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Chain([ResidualMLP() for _ in range(3)]), torch.randn(4, WIDTH)


@pytest.mark.parametrize("is_kept", [True, False], ids=["model kept", "model let go of"])
def test_an_older_optimizer_of_a_copy_is_told_once(is_kept: bool) -> None:
    model, x = built()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    converted = mn.convert(model, x)
    if not is_kept:  # as in model = convert(model, x)
        del model
        gc.collect()
    before = [parameter.clone() for parameter in converted.parameters()]
    converted(x).sum().backward()
    with pytest.warns(mn.MomentumNetWarning, match=r"this SGD holds parameters of the Chain .* inplace=True") as told:
        optimizer.step()
    assert told[0].filename == __file__
    assert all(torch.equal(a, b) for a, b in zip(converted.parameters(), before, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize("case", ["in place", "made after", "both train", "no backward yet"])
def test_nothing_is_told_where_all_is_well(case: str) -> None:
    model, x = built()
    optimizer = torch.optim.Adam(model.parameters())
    converted = mn.convert(model, x, inplace=case == "in place")
    if case == "made after":
        optimizer = torch.optim.Adam(converted.parameters())
    if case == "both train":
        model(x).sum().backward()
    if case != "no backward yet":
        converted(x).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_gradients_that_a_closure_computes_count() -> None:
    model, x = built()
    converted = mn.convert(model, x)
    converted(x).sum().backward()  # to look at, no more
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure)


def test_models_are_not_held() -> None:
    model, x = built()
    optimizer_left_behind._originals.clear()
    converted = mn.convert(model, x)
    seen = weakref.ref(model), weakref.ref(converted)
    del model, converted
    gc.collect()
    assert [reference() for reference in seen] == [None, None]
    assert not optimizer_left_behind._originals


def test_a_compiled_step_goes_on() -> None:
    model, x = built()
    converted = mn.convert(model, x)
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.1)
    before = next(converted.parameters()).clone()
    converted(x).sum().backward()
    torch.compile(optimizer.step, backend="eager")()
    assert not torch.equal(next(converted.parameters()), before)
