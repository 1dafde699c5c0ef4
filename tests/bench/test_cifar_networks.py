"""The networks against the papers' tables and the names in the published checkpoints."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from momentumnet.bench.networks.cifar_networks import build, parse


def parameters(name: str) -> int:
    return parameters_of(build(name))


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Millions, as He et al. 2015 give them in table 6 (normalisation and classifier included).
@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20_bn", 0.27), ("resnet32_bn", 0.46), ("resnet56_bn", 0.85), ("resnet110_bn", 1.7)]
)
def test_resnet_size(name: str, millions: float) -> None:
    assert parameters(name) / 1e6 == pytest.approx(millions, rel=0.02)


def test_resnet1202_has_200_blocks_a_stage() -> None:
    with torch.device("meta"):
        model = build("resnet1202_bn")
    assert [len(model.get_submodule(f"layer{stage}")) for stage in (1, 2, 3)] == [200] * 3
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(19.4, rel=0.01)


def test_resnet_keys() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    blocks = ["", *(f"layer{stage}.{block}." for stage in (1, 2, 3) for block in range(3))]
    layers = [(block, number) for block in blocks for number in ((1, 2) if block else (1,))]
    keys = {f"{block}conv{number}.weight" for block, number in layers}
    keys |= {f"{block}bn{number}.{name}" for block, number in layers for name in norm}
    assert set(build("resnet20_bn").state_dict()) == keys | {"linear.weight", "linear.bias"}
    plain = {key for key in keys if ".bn" not in key and not key.startswith("bn")}
    biases = {key.replace("weight", "bias") for key in plain}
    assert set(build("resnet20").state_dict()) == plain | biases | {"linear.weight", "linear.bias"}


@pytest.mark.parametrize(("depth", "convolutions"), [(8, 5), (11, 8), (13, 10), (16, 13), (19, 16)])
def test_vgg_has_three_layers_less_than_its_name_says_and_a_classifier(depth: int, convolutions: int) -> None:
    plain, normalised = build(f"vgg{depth}"), build(f"vgg{depth}_bn")
    for model, norms in ((plain, 0), (normalised, convolutions)):
        kinds = [type(module) for module in model.modules()]
        assert kinds.count(nn.Conv2d) == convolutions
        assert kinds.count(nn.BatchNorm2d) == norms
        assert (kinds.count(nn.MaxPool2d), kinds.count(nn.Linear)) == (5, 1)


def test_vgg19_size() -> None:
    # Simonyan and Zisserman's configuration E: channels of its 16 convolutions, and the classifier.
    widths = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    assert parameters("vgg19") == sum(9 * a * b + b for a, b in pairwise(widths)) + 512 * 10 + 10


@pytest.mark.parametrize("name", ["resnet8", "resnet8_bn", "vgg8", "vgg11_bn"])
@pytest.mark.parametrize("size", [8, 32])
def test_images_of_any_size_give_classes(name: str, size: int) -> None:
    model = build(name, classes=7).eval()
    images = torch.randn(3, 3, size, size)
    logits = model(images)
    assert logits.shape == (3, 7)
    assert torch.allclose(model(images[:1]), logits[:1], atol=1e-4)  # an image at a time
    has_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert parse(name).batch_norm == has_norm == name.endswith("_bn")


@pytest.mark.parametrize(("name", "side", "width", "tokens"), [("vit3", 32, 192, 64), ("vit2x16", 8, 16, 16)])
def test_vit_has_the_blocks_and_features_of_its_name(name: str, side: int, width: int, tokens: int) -> None:
    model = build(name, classes=7, side=side).eval()
    found = parse(name)
    assert (found.family, found.depth, found.width, found.batch_norm) == ("vit", int(name[3]), width, False)
    # A block of a transformer: queries, keys, values and output, two linear maps to 4 width and back, two norms.
    block = 4 * width * (width + 1) + width * (8 * width + 5) + 4 * width
    patch = 3 * (side**2 // tokens) + 1
    assert parameters_of(model) == found.depth * block + width * (patch + tokens + 2) + 7 * (width + 1)
    images = torch.randn(3, 3, side, side)
    assert torch.allclose(model(images[:1]), model(images)[:1], atol=1e-4)  # an image at a time
    changed = images.clone()
    changed[0, :, -1, -1] += 1  # the last pixel of the last patch
    assert not torch.equal(model(changed)[0], model(images)[0])


def test_vit_without_whole_patches_or_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="side must be a multiple of the patches' 4 pixels, got 34"):
        build("vit2", side=34)
    with pytest.raises(ValueError, match="100 features make no whole heads; give a multiple of 64, or less than 64"):
        parse("vit2x100")


def test_width_is_that_of_the_first_stage() -> None:
    model = build("resnet20w4_bn")
    assert [model.get_submodule(f"layer{stage}.2.conv2").weight.shape[0] for stage in (1, 2, 3)] == [4, 8, 16]
    assert parse("resnet20w4_bn") == ("resnet", 20, True, 4)
    assert parameters("resnet20w16") == parameters("resnet20") != parameters("resnet20w8")


@pytest.mark.parametrize(
    "name",
    [
        *("vit", "vit0", "vit2x", "vit2x0", "vit2_bn", "vgg8w4", "resnet20w0", "resnet20_bnw4"),
        *("resnet21", "resnet2", "vgg10", "vgg", "resnet20_ln", "alexnet"),
    ],
)
def test_unknown_name_is_answered_with_what_there_is(name: str) -> None:
    with pytest.raises(ValueError, match=r"there are resnetN with N = 6 n \+ 2 .*vgg8, vgg11, .*_bn"):
        build(name)
