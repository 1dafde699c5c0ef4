"""The drawn weights have the deviations of the papers' formulas, computed here by hand for each kind of layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn
from momentumnet.init import InitReport, kaiming_, xavier_


class Experts(nn.Module):
    """Matrices of (out, in) in one parameter."""

    def __init__(self, count: int, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, outputs, inputs))


class Conv1D(nn.Module):
    """As transformers has it for GPT-2: y = x W + b, W of (in, out), and the name nf for the outputs."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.ones(nf))


# Layer, and what one of its linear maps has: inputs, outputs (times the kernel's pixels), and its maps.
Maps = Callable[[nn.Module], list[Tensor]]
LAYERS: dict[str, tuple[Callable[[], nn.Module], int, int, Maps]] = {
    "linear": (lambda: nn.Linear(300, 500), 300, 500, lambda m: [m.weight]),
    "convolution": (lambda: nn.Conv2d(40, 90, 3), 40 * 9, 90 * 9, lambda m: [m.weight]),
    "convolution in 4 groups": (lambda: nn.Conv1d(80, 120, 5, groups=4), 20 * 5, 30 * 5, lambda m: [m.weight]),
    "transposed convolution": (lambda: nn.ConvTranspose2d(40, 90, 3), 40 * 9, 90 * 9, lambda m: [m.weight]),
    "transposed in 2 groups": (
        lambda: nn.ConvTranspose2d(80, 180, 3, groups=2),
        40 * 9,
        90 * 9,
        lambda m: [m.weight],
    ),
    "lstm": (lambda: nn.LSTM(150, 100), 150, 100, lambda m: list(m.weight_ih_l0.chunk(4))),
    "gru cell": (lambda: nn.GRUCell(150, 100), 150, 100, lambda m: list(m.weight_ih.chunk(3))),
    "experts": (lambda: Experts(6, 200, 300), 300, 200, lambda m: list(m.weight)),
    "transformers' Conv1D": (lambda: Conv1D(500, 300), 300, 500, lambda m: [m.weight]),
    "attention": (lambda: nn.MultiheadAttention(200, 4), 200, 200, lambda m: list(m.in_proj_weight.chunk(3))),
}


def deviations(layer: nn.Module, maps: Maps) -> list[float]:
    return [float(weight.detach().std()) for weight in maps(layer)]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_kaiming_deviation(layer: str, distribution: str) -> None:
    build, fan_in, fan_out, maps = LAYERS[layer]
    torch.manual_seed(0)
    module = build()
    for mode, fan in (("fan_in", fan_in), ("fan_out", fan_out)):
        kaiming_(module, mode=mode, distribution=distribution)
        expected = math.sqrt(2 / fan)
        assert deviations(module, maps) == pytest.approx([expected] * len(maps(module)), rel=0.03)
        largest = max(float(weight.detach().abs().max()) for weight in maps(module))
        assert (largest <= math.sqrt(3) * expected * 1.0001) == (distribution == "uniform")
    for name, parameter in module.named_parameters():
        assert parameter.any() == ("bias" not in name), name


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("distribution", ["normal", "uniform"])
def test_xavier_deviation(layer: str, distribution: str) -> None:
    build, fan_in, fan_out, maps = LAYERS[layer]
    torch.manual_seed(0)
    module = build()
    xavier_(module, distribution=distribution, gain=1.5)
    expected = 1.5 * math.sqrt(2 / (fan_in + fan_out))
    assert deviations(module, maps) == pytest.approx([expected] * len(maps(module)), rel=0.03)


def test_gain_follows_the_nonlinearity() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 400)
    for options, gain in (
        ({"nonlinearity": "linear"}, 1),
        ({"nonlinearity": "tanh"}, 5 / 3),
        ({"nonlinearity": "leaky_relu", "a": 0.5}, math.sqrt(2 / 1.25)),
    ):
        kaiming_(layer, **options)
        assert deviations(layer, lambda m: [m.weight])[0] == pytest.approx(gain / 20, rel=0.02)


def test_signals_keep_their_size_through_a_deep_network() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(30) for layer in (nn.Linear(256, 256, bias=False), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.randn(64, 256)

    def size() -> float:
        return float(model(x).detach().square().mean())

    assert size() < 1e-9  # PyTorch's own draw
    kaiming_(model)
    assert 0.1 < size() < 10


class Mixed(nn.Module):
    """What is no weight beside what is one."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16, padding_idx=0)
        self.norm = nn.LayerNorm((4, 16))
        self.inner = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(4), nn.PReLU(), nn.GroupNorm(2, 4))
        self.layer_scale = nn.Parameter(torch.full((4, 1), 1e-6))
        self.head = nn.Linear(16, 1)
        nn.init.zeros_(self.head.weight)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.same = self.inner[0]


def test_what_is_left_alone() -> None:
    torch.manual_seed(0)
    model = Mixed()
    before = copy.deepcopy(model.state_dict())
    report = kaiming_(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    drawn = {"inner.0.weight", "inner.0.bias", "head.weight", "head.bias"}
    assert changed == drawn | {"same.weight", "same.bias"}
    assert {name for name, scale in report.scales.items() if scale != 1} == drawn
    assert report.scales["head.weight"] == math.inf
    assert report.scales["head.bias"] == 0


def test_shared_weight_is_drawn_once_and_as_the_linear_layers_one() -> None:
    def draw(*, tied: bool) -> Tensor:
        torch.manual_seed(0)
        words, head = nn.Embedding(500, 128), nn.Linear(128, 500, bias=False)
        words.weight = head.weight if tied else words.weight
        torch.manual_seed(1)
        kaiming_(nn.ModuleDict({"words": words, "head": head, "again": head}))
        return head.weight.detach()

    assert torch.equal(draw(tied=True), draw(tied=False))
    assert float(draw(tied=True).std()) == pytest.approx(math.sqrt(2 / 128), rel=0.03)


@pytest.mark.parametrize("initialise", [kaiming_, xavier_])
def test_rows_of_padding_in_a_shared_table_are_zero(initialise: Callable[[nn.Module], InitReport]) -> None:
    words, head = nn.Embedding(9, 4, padding_idx=3), nn.Linear(4, 9, bias=False)
    words.weight = head.weight
    initialise(nn.ModuleDict({"head": head, "words": words}))
    assert torch.equal(head.weight.any(1), torch.arange(9) != 3)


@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_a_hook_computes_are_refused(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), norm(nn.Linear(4, 4)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="1 has a parametrized weight"):
        kaiming_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("initialise", [kaiming_, xavier_])
def test_the_seed_decides(initialise: Callable[[nn.Module], InitReport]) -> None:
    def weights(seed: int) -> Tensor:
        model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4))
        torch.manual_seed(seed)
        initialise(model)
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_report_has_the_norms_ratio() -> None:
    model = nn.Linear(30, 20)
    before = model.weight.detach().clone()
    scale = kaiming_(model).scales["weight"]
    assert scale == pytest.approx(float(model.weight.detach().norm() / before.norm()))


def test_converted_network() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True, dropout=0.0)
    plain, x = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 5, 16)
    converted = mn.convert(plain, x, gamma=0.5)
    for model in (plain, converted):
        torch.manual_seed(1)
        kaiming_(model)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, converted.state_dict()[name]), name
    converted.train()(x).sum().backward()


def test_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before, real, drawn = copy.deepcopy(model.state_dict()), nn.init.kaiming_normal_, []

    def interrupted(*arguments: object, **options: object) -> Tensor:
        if drawn:
            raise KeyboardInterrupt
        drawn.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(nn.init, "kaiming_normal_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kaiming_(model)
    assert drawn
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: kaiming_(m, mode="fan"), "mode must be one of 'fan_in', 'fan_out', got 'fan'"),
        (lambda m: kaiming_(m, distribution="cauchy"), "distribution must be one of 'normal', 'uniform'"),
        (lambda m: kaiming_(m, nonlinearity="sine"), "sine"),
        (lambda m: kaiming_(m, a=0.1), "a=0.1 is the slope of leaky_relu"),
        (lambda m: xavier_(m, gain=0), "gain must be a finite number above 0, got 0"),
        (lambda m: xavier_(m, gain="2"), "gain must be a finite number above 0, got '2'"),
        (lambda m: kaiming_(m, a="0.1", nonlinearity="leaky_relu"), "a must be a finite number, got '0.1'"),
        (lambda m: xavier_(m, distribution="gamma"), "distribution must be one of"),
        (lambda m: xavier_(m.requires_grad_(False)), "Linear has no weight to draw"),
        (lambda m: kaiming_(nn.utils.parametrizations.weight_norm(m)), "parametrized"),
    ],
)
def test_unusable_arguments(call: Callable[[nn.Module], object], message: str) -> None:
    model = nn.Linear(3, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        call(model)
    if "parametrized" not in message:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Features(nn.Module):
    """A layer of somebody else's, whose ``nf`` is how many numbers it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.nf = 400
        self.weight = nn.Parameter(torch.randn(25, 400))


def test_an_attribute_of_conv1d_makes_none() -> None:
    """The weight was drawn by the fan of its other side, 4 times too large."""
    layer = Features()
    kaiming_(layer)
    assert layer.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.05)
