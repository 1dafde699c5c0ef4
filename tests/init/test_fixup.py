"""Fixup: the paper's scales by hand, its scalars, and what it leaves as it was."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

import momentumnet as mn
from examples.cifar.resnet import CifarResNet
from momentumnet.init import fixup_
from momentumnet.init.fixup import MODES
from momentumnet.init.normalisation import normalisations_in
from momentumnet.init.scalars import MULTIPLIER, add_scalar
from tests.init.fixed_up import expected_draws, fixed, images, resnet

BASIC = {"conv1.weight": 6 ** (-1 / 2), "conv2.weight": 0.0, "fc.weight": 0.0}
BOTTLENECK = {"conv1.weight": 5 ** (-1 / 4), "conv2.weight": 5 ** (-1 / 4), "conv3.weight": 0.0, "fc.weight": 0.0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("block", "layers", "factors"), [(BasicBlock, (2, 2, 1, 1), BASIC), (Bottleneck, (1, 2, 1, 1), BOTTLENECK)]
)
def test_scales_are_those_of_the_paper(
    block: type[nn.Module], layers: tuple[int, ...], factors: dict[str, float], mode: str
) -> None:
    """L is 6 and m 2, L^(-1/2); L is 5 and m 3, L^(-1/4). Stem and projections have He's scale."""
    model = resnet(block, layers)
    in_blocks = {f"layer{i + 1}.{j}.{k}": f for i, n in enumerate(layers) for j in range(n) for k, f in factors.items()}
    in_blocks["fc.weight"] = 0.0
    fixup_(model, images(), remove_normalization=True, mode=mode, generator=torch.Generator().manual_seed(5))
    in_blocks["conv1.weight"] = 1.0
    draws = expected_draws(model, in_blocks, mode)
    assert len(draws) == len([m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))])
    for name, draw in draws.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), draw, msg=name)
    assert (model.fc.bias == 0).all()


class UpAndDown(nn.Module):
    """A branch whose layers are no dense ones: a convolution of each channel, and a transposed one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, groups=channels)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1)
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.up(self.down(x).relu()).relu())


@pytest.mark.parametrize(("mode", "down", "up"), [("fan_in", 9, 96 * 16), ("fan_out", 2 * 9, 48 * 16)])
def test_fans_are_those_of_one_map(mode: str, down: int, up: int) -> None:
    """L is 4 and m 3. A channel is made from one channel, and makes two; a transposed kernel has its inputs first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), *[UpAndDown(48) for _ in range(4)])
    fixup_(model, images(), mode=mode)  # type: ignore[arg-type]
    for block in model[1:]:
        assert float(block.down.weight.detach().std()) == pytest.approx(4 ** (-1 / 4) * math.sqrt(2 / down), rel=0.08)
        assert float(block.up.weight.detach().std()) == pytest.approx(4 ** (-1 / 4) * math.sqrt(2 / up), rel=0.03)


def test_cifar_resnet_counts_blocks_with_shortcuts_without_parameters() -> None:
    model = CifarResNet(20)
    report = fixed(model)
    weight = model.layer2[0].conv1.weight
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (32 * 9)) * 9 ** (-1 / 2), rel=0.05)
    assert report.notes[0] == "9 residual branches in 9 blocks, of 2 weight layers"


def test_scalars_stand_where_the_paper_puts_them() -> None:
    model = resnet()
    fixed(model)
    names = [name for name in model.state_dict() if "fixup" in name]
    assert [name for name in names if name.startswith("layer2.0")] == [
        "layer2.0.conv1.fixup_input_bias",
        "layer2.0.conv1.fixup_output_bias",  # before the activation
        "layer2.0.conv2.fixup_input_bias",
        "layer2.0.conv2.fixup_multiplier",
        "layer2.0.conv2.fixup_output_bias",  # before the activation after the sum
        "layer2.0.downsample.0.fixup_input_bias",
    ]
    outside = [name for name in names if not name.startswith("layer")]
    assert outside == ["conv1.fixup_input_bias", "conv1.fixup_output_bias", "fc.fixup_input_bias"]
    for name in names:
        assert model.state_dict()[name].tolist() == [float(name.endswith("multiplier"))]


def test_scalars_take_part_and_learn() -> None:
    model = resnet()
    fixed(model)
    with torch.no_grad():
        model.fc.weight.normal_()
        model.layer1[0].conv2.weight.normal_(0, 0.1)
    before = model(images())
    before.square().sum().backward()
    scalars = {name: p for name, p in model.named_parameters() if "fixup" in name}
    for name in ("conv1.fixup_input_bias", "layer1.0.conv2.fixup_multiplier", "layer1.0.conv1.fixup_output_bias"):
        assert scalars[name].grad is not None
        assert scalars[name].grad.abs() > 0, name
        value = scalars[name].item()
        with torch.no_grad():
            scalars[name].fill_(value + 0.5)
            assert not torch.allclose(model(images()), before), name
            scalars[name].fill_(value)
    convolved = nn.functional.conv2d(images() + 0.5, model.conv1.weight, stride=2, padding=3)
    with torch.no_grad():
        model.conv1.fixup_input_bias.fill_(0.5)
        add_scalar(model.conv1, MULTIPLIER, model.conv1.weight)
        model.conv1.fixup_multiplier.fill_(3)
        model.conv1.fixup_output_bias.fill_(0.25)
    torch.testing.assert_close(model.conv1(images()), 3 * convolved + 0.25)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_blocks_start_as_the_identity(block: type[nn.Module]) -> None:
    model = resnet(block)
    fixed(model)
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, block):
            module.register_forward_hook(lambda module, args, output: seen.append((module, args[0], output)))
    output = model(images())
    assert len(seen) == 6
    for module, x, y in seen:
        shortcut = x if module.downsample is None else module.downsample(x)
        assert torch.equal(y, shortcut.relu())
    assert (output == 0).all()
    assert output.isfinite().all()


def test_deep_network_learns() -> None:
    """At the start only the classifier has a gradient; after its first step every branch has one, none explodes."""
    torch.manual_seed(0)
    model, target = CifarResNet(56), torch.tensor([1, 7])
    fixed(model)
    assert normalisations_in(model) == []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(images()), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(10))
    assert losses[-1] < losses[1] < losses[0]
    assert all(block.conv1.weight.grad.abs().sum() > 0 for layer in (model.layer1, model.layer3) for block in layer)


def test_names_copies_and_pickles() -> None:
    model = resnet()
    keys = [name for name, _ in model.named_parameters() if "bn" not in name and "downsample.1" not in name]
    fixed(model)
    assert [name for name, _ in model.named_parameters() if "fixup" not in name] == keys
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    expected = model(images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images()), expected)
        with torch.no_grad():
            other.conv1.fixup_output_bias.add_(1)
        assert not torch.equal(other(images()), expected)
    assert torch.equal(model(images()), expected)
    fresh = resnet()
    fixed(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images()), expected)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(images()).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("order", ["convert first", "fixup first"])
def test_together_with_convert(order: str) -> None:
    networks = []
    for backward in ("reversible", "stored"):
        model = resnet()
        if order == "convert first":
            model = mn.convert(model, images(), gamma=0.9, backward=backward)
        fixed(model)
        if order == "fixup first":
            model = mn.convert(model, images(), gamma=0.9, backward=backward)
        networks.append(model)
    plain = resnet()
    fixed(plain)
    for name, parameter in plain.named_parameters():
        assert torch.equal(networks[0].get_parameter(name), parameter), name
    for model in networks:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(0.02 * ("conv2" in name or "fc" in name))
    reversible, stored = map(gradients, networks)
    assert reversible.keys() == stored.keys()
    assert reversible["layer1.0.conv2.fixup_multiplier"].abs() > 0
    for name, gradient in reversible.items():
        torch.testing.assert_close(gradient, stored[name], rtol=1e-6, atol=1e-8, msg=name)
    if order == "convert first":
        assert mn.revert(networks[0])(images()).isfinite().all()


def test_seeds_and_second_runs() -> None:
    first, second = resnet(), resnet()
    torch.manual_seed(3)
    fixup_(first, images(), remove_normalization=True)
    torch.manual_seed(3)
    fixup_(second, images(), remove_normalization=True)
    with torch.no_grad():
        second.conv1.fixup_output_bias.fill_(4)
    torch.manual_seed(3)
    fixup_(second, images())  # nothing is left to remove
    assert list(first.state_dict()) == list(second.state_dict())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert len(second.conv1._forward_hooks) == len(second.conv1._forward_pre_hooks) == 1
