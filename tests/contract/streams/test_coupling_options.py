"""What `convert` makes of a coupling: descriptions, configs, names, and what is refused beside it."""

from __future__ import annotations

import copy
import json
import warnings
from fractions import Fraction
from typing import Any

import pytest
import torch

import momentumnet as mn
from momentumnet.streams.blocks.converted import streams_of
from tests.contract.reference import COUPLED, assert_same, train_step
from tests.contract.streams.coupled_chains import chain, converted, rows, rules


@rules
def test_a_description_and_a_state_make_it_again(coupling: Any) -> None:
    model = chain(5)
    net = mn.convert(model, rows(), coupling=coupling)
    train_step(net, (rows(),))
    description = json.loads(json.dumps(mn.describe(net)))
    assert "gamma" not in description["streams"][0]
    again = mn.convert(chain(5), like=description)
    again.load_state_dict(net.state_dict())
    mn.load_training_state(again, mn.training_state(net))
    net.zero_grad(set_to_none=True)
    assert_same(train_step(again, (rows(),)), train_step(net, (rows(),)), tolerance=0)
    assert mn.describe(again) == mn.describe(net)
    assert torch.equal(mn.revert(again)(rows()), model(rows()))
    twin = copy.deepcopy(net)
    twin.zero_grad(set_to_none=True)
    net.zero_grad(set_to_none=True)
    assert_same(train_step(twin, (rows(),)), train_step(net, (rows(),)), tolerance=0)


def test_a_description_that_cannot_be_followed() -> None:
    description = mn.describe(converted(chain(3), "dr2net"))
    stream = description["streams"][0]
    for change, message in (
        ({"coupling": {"name": "other"}}, "by its name and its coefficients"),
        ({"coupling": {"name": "dr2net", "alpha": "2"}}, "by its name and its coefficients"),
        ({"coupling": {"name": "bdia", "beta": "1/2"}}, "by its name and its coefficients"),
        ({"final_velocity": "flush"}, "no velocity to flush"),
        ({"initial_velocity": "branch"}, "no initial velocity"),
        ({"gamma": "1/2"}, "one of gamma, coupling"),
    ):
        with pytest.raises(mn.ConversionError, match=message):
            mn.convert(chain(3), like={**description, "streams": [{**stream, **change}]})


@pytest.mark.parametrize("options", COUPLED, ids=str)
def test_what_only_momentum_has_is_refused(options: dict[str, Any]) -> None:
    model, x = chain(3), rows()
    for given, message in (
        ({"gamma": 0.5}, "no velocity, and gamma was given"),
        ({"initial_velocity": "branch"}, "no velocity, and initial_velocity was given"),
        ({"final_velocity": "drop"}, "no velocity, and final_velocity was given"),
        ({"budget": "least"}, "given with budget, and the planner knows"),
        ({"spare": 1000}, "given with spare, and the planner knows"),
        ({"plan": mn.plan(model, x, budget="least")}, "plan= says how the model is converted"),
        ({"like": mn.describe(mn.convert(model, x))}, "like= says how the model is converted"),
    ):
        with pytest.raises(mn.ConversionError, match=message):
            mn.convert(model, x, **options, **given)
    net = mn.convert(model, x, **options)
    for change in (lambda: mn.set_gamma(net, 0.5), lambda: mn.schedule_gamma(net, 4, 0.1, 0.5)):
        with pytest.raises(mn.ConversionError, match="blocks moves by another coupling, which has no gamma"):
            change()
    assert len(streams_of(net)) == 1


def test_names_and_coefficients() -> None:
    model, x = chain(3), rows()
    assert "gamma" in mn.describe(mn.convert(model, x, coupling="momentum"))["streams"][0]
    with pytest.raises(mn.ConversionError, match="ReversibleSequential"):
        mn.convert(model, x, coupling="additive")
    for strange in ("revnet", None, 1):
        with pytest.raises(ValueError, match=r"coupling must be 'momentum', 'bdia', 'dr2net' or a momentumnet\.Dr2Net"):
            mn.convert(model, x, coupling=strange)
    assert mn.Dr2Net(alpha=0.5) == mn.Dr2Net(alpha=Fraction(1, 2)) != mn.Dr2Net()
    for wrong in ({"alpha": 1.5}, {"alpha": float("nan")}, {"beta": 0}, {"beta": -1}, {"beta": 1e-4}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be"):
            mn.Dr2Net(**wrong)
    with pytest.raises(TypeError, match="alpha must be a number"):
        mn.Dr2Net(alpha="1")  # type: ignore[arg-type]


def test_a_config_says_the_coupling_and_a_change_of_it_is_warned_of() -> None:
    class Config:
        def to_dict(self) -> dict[str, Any]:
            return dict(vars(self))

        def save_pretrained(self) -> None:
            """Nothing is saved here."""

    model = chain(3)
    model.config = Config()
    net = mn.convert(model, rows(), coupling=mn.Dr2Net(beta=0.5))
    assert net.config.momentumnet["streams"][0]["coupling"] == {"name": "dr2net", "alpha": "1", "beta": "1/2"}
    stock = chain(3)
    stock.config = net.config
    with pytest.warns(mn.MomentumNetWarning, match="blocks at dr2net alpha 1 beta 1/2; now blocks at bdia"):
        mn.convert(stock, rows(), coupling="bdia")


def test_hf_export_takes_bdia_for_the_stock_network() -> None:
    pytest.importorskip("transformers")
    net = converted(chain(3), "bdia")
    assert mn.hf.export(net).same
    with pytest.raises(mn.ConversionError, match="moves by another coupling than momentum"):
        mn.hf.export(converted(chain(3), "dr2net"))


@pytest.mark.parametrize(
    "coupling",
    ["bdia", mn.Dr2Net(), mn.Dr2Net(alpha=1, beta=1), mn.Dr2Net(alpha=1, beta=0.5), mn.Dr2Net(alpha=0, beta=0.5)],
    ids=str,
)
def test_floats_that_lose_gradients_are_warned_of(coupling: Any) -> None:
    """Without a warning the gradient of floats is right to 1e-3; of a rule that loses no digits there is none."""
    warned = []
    for depth in (2, 3, 5, 8, 10, 13, 14, 20):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            net = converted(chain(depth), coupling, arithmetic="float")
        warned.append(bool(told))
        if told:
            rule = "Bdia()" if coupling == "bdia" else str(coupling)
            assert f"arithmetic='float' of {rule} over {depth} blocks" in str(told[0].message)
            continue
        found, expected = (
            torch.cat([grad.flatten() for grad in train_step(own, (rows(),)).gradients.values() if grad is not None])
            for own in (net, converted(chain(depth), coupling, "stored", arithmetic="float"))
        )
        assert (found - expected).norm() <= 1e-3 * expected.norm()
    loses = not (isinstance(coupling, mn.Dr2Net) and coupling.alpha == 0)
    assert warned == sorted(warned)
    assert warned[-1] == loses


def test_a_subclass_of_a_rule_is_refused() -> None:
    class Own(mn.Dr2Net):
        pass

    with pytest.raises(ValueError, match=r"coupling must be .*Dr2Net"):
        converted(chain(3), Own())
