"""A converted model says what it is, and a stock one becomes the same again; so does a config that is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import momentumnet as mn
from tests.configured import EXAMPLE, Config, chain, configured
from tests.models import WIDTH

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet18(num_classes=5)


def again(stock: nn.Module, converted: nn.Module, **options: Any) -> nn.Module:
    """The converted model from its state dict and its description, by way of a file's text."""
    description = json.loads(json.dumps(mn.describe(converted)))
    net = mn.convert(stock, like=description, **options)
    net.load_state_dict(converted.state_dict())
    return net


def gradients(net: nn.Module, x: Tensor) -> list[Tensor | None]:
    torch.manual_seed(1)
    net.train().zero_grad()
    out = net(x)
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize(
    ("build", "example", "options"),
    [
        (chain, EXAMPLE, {}),
        (chain, EXAMPLE, {"gamma": 0.9, "final_velocity": "drop", "initial_velocity": "branch"}),
        (chain, EXAMPLE, {"backward": "stored", "arithmetic": "float"}),
        (chain, EXAMPLE, {"spare": 3000}),
        (chain, None, {"streams": ["blocks"]}),
        (network, IMAGES, {"others": "checkpoint"}),
        (network, IMAGES, {"others": "checkpoint", "streams": ["layer1"], "gamma": 0}),
    ],
)
def test_the_same_network_again(build: Callable[[], nn.Module], example: Any, options: dict[str, Any]) -> None:
    converted = mn.convert(build(), example, **options)
    net = again(build(), converted)
    assert mn.describe(net) == mn.describe(converted)
    assert net.state_dict().keys() == build().state_dict().keys()
    with torch.no_grad():
        x = IMAGES if build is network else EXAMPLE
        assert torch.equal(net.eval()(x), converted.eval()(x))
    # And to the bit in training, when it knows of the scales what the other one does.
    mn.load_training_state(net, mn.training_state(converted))
    for found, expected in zip(gradients(net, x), gradients(converted, x), strict=True):
        assert torch.equal(found, expected)


def test_gamma_is_a_fraction_of_each_stream_and_follows_set_gamma() -> None:
    net = mn.convert(network(), IMAGES, gamma=0.9)
    assert [stream["gamma"] for stream in mn.describe(net)["streams"]] == ["9/10"]
    mn.set_gamma(net, 1 / 16)
    assert {stream["gamma"] for stream in mn.describe(net)["streams"]} == {"1/16"}


def test_a_model_of_the_original_packages_interface() -> None:
    net = mn.transform_to_momentumnet(network(), gamma=0.75, use_backprop=False)
    assert again(network(), net)(IMAGES).equal(net(IMAGES))


def test_a_converted_part_of_a_larger_model_has_the_names_that_it_has_there() -> None:
    larger = nn.ModuleDict({"body": mn.convert(chain(), EXAMPLE)})
    description = mn.describe(larger)
    assert description["streams"][0]["blocks"] == [f"body.blocks.{n}" for n in range(4)]
    net = mn.convert(nn.ModuleDict({"body": chain()}), like=description)
    assert mn.describe(net) == description


def test_a_module_for_the_initial_velocity_has_to_be_given() -> None:
    converted = mn.convert(chain(), EXAMPLE, initial_velocity=nn.Linear(WIDTH, WIDTH))
    with pytest.raises(mn.ConversionError, match="had a module for its initial velocity"):
        again(chain(), converted)
    net = again(chain(), converted, initial_velocity=nn.Linear(WIDTH, WIDTH))
    with torch.no_grad():
        assert torch.equal(net(EXAMPLE), converted(EXAMPLE))
    with pytest.raises(mn.ConversionError, match="had no module for it"):
        again(chain(), mn.convert(chain(), EXAMPLE), initial_velocity=nn.Linear(WIDTH, WIDTH))


@pytest.mark.parametrize(
    ("stock", "message"),
    [
        (lambda: chain(3), r"Chain does not fit .* it has no module 'blocks\.3'"),
        (lambda: chain(5), "'blocks' has 5 modules, and had 4"),
        (lambda: nn.Linear(2, 2), "Linear does not fit the description of a Chain: it has no module 'blocks.0'"),
        (lambda: mn.convert(chain(), EXAMPLE), "converted already"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(stock: Callable[[], nn.Module], message: str) -> None:
    description = mn.describe(mn.convert(chain(), EXAMPLE))
    with pytest.raises(mn.ConversionError, match=message):
        mn.convert(stock(), like=description)


def changed(**fields: Any) -> dict[str, Any]:
    return {**mn.describe(mn.convert(chain(), EXAMPLE)), **fields}


def stream(**fields: Any) -> dict[str, Any]:
    description = changed()
    description["streams"][0].update(fields)
    return description


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("1/8", "takes what momentumnet.describe returned"),
        ({"gamma": "1/8"}, "takes what momentumnet.describe returned"),
        (changed(version=2), "has version 2, and this version of momentumnet reads version 1"),
        (changed(more=1), "a description holds"),
        (changed(streams=[]), "for those streams the sizes of containers"),
        (changed(recomputed=None), "a list of what is recomputed"),
        (changed(recomputed=[[3]]), "a list of their names, got"),
        (changed(streams=[{"gamma": "1/8"}]), "the description of a stream holds"),
        (stream(blocks="blocks.0"), "a list of their names, got 'blocks.0'"),
        (stream(gamma="eighth"), "cannot be followed: Invalid literal for Fraction"),
        (stream(gamma="3/2"), "cannot be followed: .*gamma"),
        (stream(arithmetic="roman"), "cannot be followed: arithmetic must be one of"),
    ],
    ids=str,
)
def test_what_is_no_description_is_refused(description: Any, message: str) -> None:
    with pytest.raises(mn.ConversionError, match=message):
        mn.convert(chain(), like=description)


@pytest.mark.parametrize(
    "options", [{"gamma": 0.9}, {"streams": ["blocks"]}, {"spare": 5}, {"others": "checkpoint"}, {"backward": "stored"}]
)
def test_nothing_else_is_given_beside_a_description(options: dict[str, Any]) -> None:
    with pytest.raises(mn.ConversionError, match=f"like= says .* {next(iter(options))} was given"):
        mn.convert(chain(), like=changed(), **options)
    with pytest.raises(mn.ConversionError, match="example_inputs was given"):
        mn.convert(chain(), EXAMPLE, like=changed())


def test_a_model_that_is_not_converted_has_no_description() -> None:
    with pytest.raises(mn.ConversionError, match="Chain holds no converted block"):
        mn.describe(chain())
    lost = mn.convert(chain(), EXAMPLE)
    del lost.blocks[3]
    with pytest.raises(mn.ConversionError, match=r"has lost its blocks \['blocks.3'\]"):
        mn.describe(lost)


def test_a_config_that_is_saved_says_what_the_model_is(tmp_path: Path) -> None:
    model = configured()
    net = mn.convert(model, EXAMPLE, gamma=0.5)
    assert vars(model.config) == {"hidden_size": WIDTH}
    net.config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["momentumnet"] == mn.describe(net)
    mn.set_gamma(net, 0.75)
    assert net.config.momentumnet == mn.describe(net)
    assert vars(mn.revert(net).config) == {"hidden_size": WIDTH}
    assert hasattr(net.config, "momentumnet")
    other = chain()
    other.config = {"hidden_size": WIDTH}  # nothing that is saved by itself
    assert mn.convert(other, EXAMPLE).config == {"hidden_size": WIDTH}


def test_a_stock_model_whose_config_tells_of_another_conversion_is_warned_of() -> None:
    saved = mn.convert(configured(), EXAMPLE, gamma=0.5).config
    stock = chain()
    stock.config = Config(**saved.to_dict())
    assert mn.convert(stock, like=stock.config.momentumnet).config.momentumnet == saved.momentumnet
    mn.convert(stock, EXAMPLE, gamma=0.5, backward="stored")  # the same function
    with pytest.warns(mn.MomentumNetWarning, match=r"blocks at gamma 1/2; now blocks at gamma 1/8.*like=") as caught:
        net = mn.convert(stock, EXAMPLE)
    assert caught[0].filename == __file__
    with pytest.warns(mn.MomentumNetWarning, match="now without streams") as caught:
        mn.convert(stock, EXAMPLE, budget="1GiB")
    assert caught[0].filename == __file__
    assert net.config.momentumnet == mn.describe(net)


def test_a_checkpoint_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=30,
    )
    ids = torch.randint(2, 30, (2, 7))
    net = mn.convert(transformers.LlamaForCausalLM(config), ids, gamma=0.9)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)  # far from where every gamma gives nearly the same
        expected = net(ids).logits
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["momentumnet"]["streams"][0]["gamma"] == "9/10"
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    again = mn.convert(stock, like=stock.config.momentumnet)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)
        assert not torch.allclose(stock(ids).logits, expected, atol=1e-3)
    mn.revert(again).save_pretrained(tmp_path / "plain")
    assert "momentumnet" not in json.loads((tmp_path / "plain" / "config.json").read_text())
