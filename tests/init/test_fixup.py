"""Fixup: the paper's scales by hand, its scalars, and what it leaves as it was."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

import momentumnet as mn
from examples.cifar.resnet import CifarResNet
from momentumnet.core.stream import MomentumStream
from momentumnet.init import InitReport, fixup_
from momentumnet.init.fixup import MODES
from momentumnet.init.normalisation import normalisations_in
from momentumnet.init.scalars import MULTIPLIER, add_scalar

IMAGES = (2, 3, 32, 32)


class SmallResNet(ResNet):
    """A torchvision ResNet with an eighth of the channels."""

    def __init__(self, block: type[nn.Module], layers: list[int]) -> None:
        super().__init__(block, layers, num_classes=5)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                inputs = 3 if module.in_channels == 3 else module.in_channels // 8
                module.__init__(inputs, module.out_channels // 8, module.kernel_size, module.stride, module.padding,
                                bias=False)  # fmt: skip
            elif isinstance(module, nn.BatchNorm2d):
                module.__init__(module.num_features // 8)
        self.fc = nn.Linear(self.fc.in_features // 8, 5)


def resnet(block: type[nn.Module] = BasicBlock, layers: tuple[int, ...] = (2, 2, 1, 1)) -> SmallResNet:
    torch.manual_seed(0)
    return SmallResNet(block, list(layers))


def images() -> Tensor:
    return torch.randn(*IMAGES, generator=torch.Generator().manual_seed(1))


def fixed(model: nn.Module, example: object = None) -> InitReport:
    generator = torch.Generator().manual_seed(5)
    example = images() if example is None else example
    return fixup_(model, example, remove_normalization=True, generator=generator)


def expected_draws(model: nn.Module, factor_of: dict[str, float], mode: str = "fan_out") -> dict[str, Tensor]:
    """He's draws in the model's order, times the factor of the weight's own name, else of its name within a block."""
    generator = torch.Generator().manual_seed(5)
    draws = {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        factor = factor_of.get(name, factor_of.get(name.split(".", 2)[-1], 1.0))
        fan = (weight.shape[0] if mode == "fan_out" else weight.shape[1]) * weight[0, 0].numel()
        draws[name] = torch.zeros_like(weight)
        if factor:
            draws[name].normal_(0, math.sqrt(2 / fan), generator=generator).mul_(factor)
    return draws


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


def test_frozen_parameters_stay() -> None:
    model = resnet()
    model.layer1.requires_grad_(False)
    before = copy.deepcopy(model)
    report = fixed(model)
    for name, parameter in model.layer1.named_parameters():
        if "fixup" not in name:
            assert torch.equal(parameter, before.layer1.get_parameter(name))
            assert not parameter.requires_grad
    assert (model.layer2[0].conv2.weight == 0).all()
    assert any(note.startswith("frozen") and "layer1.0.conv1.weight" in note for note in report.notes)


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


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(x)[0][:, -1]))


def test_no_residual_block() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    for model, example in ((LSTMClassifier(), torch.randn(2, 5, 4)), (plain, images())):
        before, kept = copy.deepcopy(model), list(model.modules())
        with pytest.raises(mn.ConversionError, match=f"no residual block found in {type(model).__name__}"):
            fixup_(model, example, remove_normalization=True)
        assert [id(module) for module in model.modules()] == [id(module) for module in kept]
        for name, value in before.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name


def test_failing_late_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = resnet()
    before, hooks = copy.deepcopy(model), len(model.conv1._forward_hooks)
    monkeypatch.setattr("momentumnet.init.fixup._add_scalars", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fixed(model)
    assert list(model.state_dict()) == list(before.state_dict())
    assert torch.equal(model.conv1.weight, before.conv1.weight)
    assert len(model.conv1._forward_hooks) == hooks
    assert model.relu.inplace


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"16 normalisation layers .*remove_normalization=True"):
        fixup_(resnet(), images())
    with pytest.raises(ValueError, match="mode must be one of 'fan_in', 'fan_out'"):
        fixup_(resnet(), images(), mode="fan")
    model = nn.Sequential(Residual(), Residual())
    nn.utils.parametrizations.weight_norm(model[0].first)
    with pytest.raises(mn.ConversionError, match=r"computed from the parameters 0\.first\.parametrizations"):
        fixup_(model, torch.randn(2, 4, 7), remove_normalization=True)


class Residual(nn.Module):
    """A residual block of one-dimensional convolutions, with a gate on the branch and pre-activation."""

    def __init__(self, *, single: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)
        self.act = nn.ReLU(inplace=True)
        self.first = nn.Identity() if single else nn.Conv1d(4, 4, 3, padding=1)
        self.second = nn.Conv1d(4, 4, 3, padding=1)
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.second(torch.relu(self.first(self.act(self.norm(x)))))
        return x + branch * self.gate(branch.mean(-1)).sigmoid()[..., None]


def test_one_dimensional_convolutions_with_group_norm_and_gate() -> None:
    """The gate is no last layer: at zero it would leave half of the branch on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 1), Residual(), Residual(), Residual(single=True), nn.Conv1d(4, 2, 1))
    example = torch.randn(2, 3, 9)
    fixed(model, example)
    draws = expected_draws(
        model, {"1.first.weight": 3**-0.5, "2.first.weight": 3**-0.5, "4.weight": 0.0}
        | {f"{index}.second.weight": 0.0 for index in (1, 2, 3)},
    )  # fmt: skip
    for name, draw in draws.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), draw, msg=name)
    stream = model[0](example)
    assert torch.equal(model[1:4](stream), stream)
    assert model[1].act.fixup_input_bias.tolist() == [0.0]  # the stream feeds it, no layer of the branch
    assert model[1].gate.fixup_input_bias.tolist() == [0.0]
    with torch.no_grad():
        model[1].second.weight.normal_()
    copied = stream.clone()
    model[1](stream)
    assert torch.equal(stream, copied)  # the activation would overwrite it without the normalisation in between


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder_has_two_branches_a_layer(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model, tokens = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first), torch.randn(2, 5, 8)
    report = fixed(model, tokens)
    assert report.notes[0] == "4 residual branches in 2 blocks, of 2 weight layers"
    attention, generator = model.layers[0].self_attn, torch.Generator().manual_seed(5)
    for matrix in attention.in_proj_weight.detach().chunk(3):
        torch.testing.assert_close(matrix, torch.empty(8, 8).normal_(0, 0.5, generator=generator) * 4**-0.5)
    assert (attention.out_proj.weight == 0).all()
    assert (model.layers[1].linear2.weight == 0).all()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            assert torch.equal(model(tokens), tokens)
            assert torch.equal(model(tokens, src_key_padding_mask=padding), tokens)


def test_vision_transformer() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=3)
    positions = model.encoder.pos_embedding.detach().clone()
    fixed(model)
    attention = model.encoder.layers[0].self_attention
    assert attention.fixup_multiplier.tolist() == [1.0]
    assert (model(images()) == 0).all()
    assert torch.equal(model.encoder.pos_embedding, positions)
    with torch.no_grad():
        model.heads.head.weight.normal_()
        attention.out_proj.weight.normal_()
        before = model(images())
        attention.fixup_multiplier.fill_(2)
        assert not torch.allclose(model(images()), before)


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens)))


def test_a_classifier_that_is_the_embedding_stays() -> None:
    model, tokens = TiedLanguageModel(), torch.randint(11, (2, 6))
    before = model.embedding.weight.detach().clone()
    report = fixed(model, tokens)
    assert torch.equal(model.embedding.weight, before)
    assert any("is an embedding too" in note for note in report.notes)
    assert model(tokens).std() > 0


def test_tracing_a_converted_network_leaves_its_streams_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without normalisation the old weights may overflow; a stream would choose its scale by that."""
    model = mn.convert(resnet(), images())

    def called(*_: object) -> None:
        raise AssertionError("the trace went through a stream")

    with monkeypatch.context() as patched:
        patched.setattr(MomentumStream, "call", called)
        fixed(model)
    assert type(model.layer1[0]).__mro__[1].__name__ == "ConvertedBlock"
    assert (model(images()) == 0).all()
