"""T-Fixup: the paper's scales by hand, how projections are told apart, and what it leaves as it was."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.vision_transformer import VisionTransformer

import momentumnet as mn
from momentumnet.init import tfixup_
from tests.init.transformer_nets import (
    WIDTH,
    Attention,
    Fused,
    KeysAndValues,
    LanguageModel,
    Layer,
    RelativeAttention,
    Stack,
    encoder,
    sequences,
    transformer,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def xavier(shape: torch.Size, source: torch.Generator) -> Tensor:
    bound = math.sqrt(6 / ((shape[0] + shape[1]) * math.prod(shape[2:])))
    return torch.empty(shape).uniform_(-bound, bound, generator=source)


def expected_draws(model: nn.Module, factor_of: Callable[[str], float]) -> dict[str, Tensor]:
    """Xavier's draws in the model's order; of stacked projections only the third is scaled."""
    source, draws = generator(), {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or "pos_embedding" in name or "class_token" in name:
            continue
        if name.endswith("in_proj_weight"):
            parts = [xavier(part.shape, source) for part in weight.detach().chunk(3)]
            draws[name] = torch.cat([parts[0], parts[1], parts[2] * factor_of(name)])
        else:
            draws[name] = xavier(weight.shape, source) * factor_of(name)
    return draws


def assert_draws(model: nn.Module, factor_of: Callable[[str], float]) -> None:
    draws = expected_draws(model, factor_of)
    assert draws
    for name, draw in draws.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), draw, msg=name)


@pytest.mark.parametrize("example", [None, sequences()])
@pytest.mark.parametrize("remove", [False, True])
def test_encoder_and_decoder_have_the_scales_of_the_paper(example: object, remove: bool) -> None:
    """Two encoder layers, three decoder layers; self-attention and cross-attention alike."""
    model = transformer()
    report = tfixup_(model, example, remove_normalization=remove, generator=generator())
    assert_draws(model, lambda name: 0.67 * 2 ** (-1 / 4) if name.startswith("encoder") else 27 ** (-1 / 4))
    assert report.notes[0] == "encoder of 2 layers, x 0.5634; decoder of 3 layers, x 0.4387"
    assert all((p == 0).all() for name, p in model.named_parameters() if "bias" in name and "norm" not in name)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("norm_first", [{}, {"norm_first": True}])
def test_an_encoder_alone(traced: bool, norm_first: dict[str, bool]) -> None:
    model = encoder(**norm_first)
    tfixup_(model, sequences()[0] if traced else None, generator=generator())
    assert_draws(model, lambda name: 0.67 * 4 ** (-1 / 4))


def test_vision_transformer() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(32, 16, 3, 2, WIDTH, 16, num_classes=3)
    images, positions = torch.randn(2, 3, 32, 32), model.encoder.pos_embedding.detach().clone()
    tfixup_(model, images, remove_normalization=True, generator=generator())
    assert_draws(model, lambda name: 0.67 * 3 ** (-1 / 4) if "layers" in name else 1.0)
    assert torch.equal(model.encoder.pos_embedding, positions)
    assert model(images).isfinite().all()
    model.eval()
    with torch.no_grad():
        assert model(images).isfinite().all()


ENCODES, DECODES = 0.67 * 3 ** (-1 / 4), 27 ** (-1 / 4)


@pytest.mark.parametrize(
    ("build", "options", "factor", "scaled"),
    [
        (Attention, {}, ENCODES, {"b": 1, "d": 1}),
        (Attention, {"causal": True}, DECODES, {"b": 1, "d": 1}),
        (Attention, {"cross": True}, DECODES, {"b": 1, "d": 1}),
        (Fused, {}, ENCODES, {"mixed": 3, "out": 1}),
        (KeysAndValues, {}, ENCODES, {"kv": 2, "out": 1}),
        (KeysAndValues, {"cross": True}, DECODES, {"kv": 2, "out": 1}),
    ],
)
def test_values_and_outputs_are_told_by_what_they_do(
    build: type[nn.Module], options: dict[str, bool], factor: float, scaled: dict[str, int]
) -> None:
    torch.manual_seed(0)
    model = Stack([Layer(build(), **options) for _ in range(3)])
    x, memory = sequences()
    tfixup_(model, (x, memory) if options.get("cross") else x, generator=generator())
    source = generator()
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        layer = name.split(".")[-2]
        count = scaled.get(layer, 1)
        parts = [xavier(part.shape, source) for part in weight.detach().chunk(count)]
        if layer in scaled or layer in ("up", "gate", "down"):
            parts[-1] *= factor
        torch.testing.assert_close(weight.detach(), torch.cat(parts), msg=name)


@pytest.mark.parametrize("head_first", [False, True])
def test_embeddings_are_gaussian(head_first: bool) -> None:
    model, tokens = LanguageModel(head_first=head_first), torch.randint(2000, (2, 6))
    tfixup_(model, tokens)
    deviation = WIDTH ** (-1 / 2) * (9 * 4) ** (-1 / 4)
    words = model.words.weight.detach()
    assert float(words[1:].std()) == pytest.approx(deviation, rel=0.02)
    assert float(words.abs().max()) > 3 * deviation  # no uniform distribution reaches that
    assert (words[0] == 0).all()
    assert model.head.weight is model.words.weight
    bound = math.sqrt(6 / 24) * 36 ** (-1 / 4)
    assert 0.9 * bound < float(model.encoder.layers[3].linear2.weight.detach().abs().max()) <= bound


@pytest.mark.parametrize("fused", [False, True])
def test_tables_of_relative_positions_stay(fused: bool) -> None:
    """They weigh values and are none: T5's had the scale of an embedding as wide as there are heads."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, WIDTH), *(RelativeAttention(fused=fused) for _ in range(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tfixup_(model, torch.randint(50, (2, 6)))
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert [name for name in before if name not in moved] == [f"{block}.distances.weight" for block in (1, 2, 3)]


def test_embeddings_of_a_model_that_is_not_traced() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"words": nn.Embedding(2000, WIDTH), "body": transformer(), "head": nn.Linear(WIDTH, 7)})
    tfixup_(model)
    deviation = WIDTH ** (-1 / 2) * (9 * 3) ** (-1 / 4)
    assert float(model["words"].weight.detach().std()) == pytest.approx(deviation, rel=0.02)
    assert float(model["head"].weight.detach().abs().max()) <= math.sqrt(6 / 15)
    assert (model["head"].bias == 0).all()


@pytest.mark.parametrize("options", [{}, {"norm_first": True}])
def test_without_normalisation_in_training_and_inference(options: dict[str, bool]) -> None:
    """PyTorch's fused inference path reads the weights of the norms; without them the plain path runs."""
    model, (x, _) = encoder(dropout=0.0, **options), sequences()
    tfixup_(model, x, remove_normalization=True)
    assert not any(isinstance(module, nn.LayerNorm) for module in model.modules())
    padding = torch.zeros(2, 4, dtype=torch.bool)
    padding[0, 2:] = True
    trained, masked = model(x), model(x, src_key_padding_mask=padding)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), trained.detach())
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), masked.detach())
    with torch.inference_mode():
        torch.testing.assert_close(copy.deepcopy(model)(x), trained.detach())
        torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), trained.detach())


def test_a_deep_transformer_without_normalisation_learns() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(WIDTH, 2, 24, 24, 16, dropout=0.0, batch_first=True)
    source, target = sequences()
    tfixup_(model, remove_normalization=True)
    goal = torch.randn_like(target)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = (model(source, target) - goal).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    assert losses[0] < 10  # Xavier alone: 48 layers without normalisation blow up


@pytest.mark.parametrize("traced", [False, True])
def test_converted_networks(traced: bool) -> None:
    (x, _), plain = sequences(), encoder()
    tfixup_(plain, remove_normalization=True, generator=generator())
    networks = []
    for backward in ("reversible", "stored"):
        model = mn.convert(encoder(), x, backward=backward)
        tfixup_(model, x if traced else None, remove_normalization=True, generator=generator())
        networks.append(model)
    gradients = []
    for model in networks:
        torch.manual_seed(0)
        model(x).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, parameter in plain.named_parameters():
        assert torch.equal(networks[0].get_parameter(name), parameter)
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-6, atol=1e-8, msg=name)


def test_frozen_parameters_stay() -> None:
    model = encoder()
    model.layers[0].requires_grad_(False)
    before = copy.deepcopy(model.layers[0])
    report = tfixup_(model, sequences()[0])
    for name, parameter in model.layers[0].named_parameters():
        assert torch.equal(parameter, before.get_parameter(name))
    assert any("frozen" in note and "layers.0.linear1.weight" in note for note in report.notes)
    assert report.notes[0].startswith("encoder of 4 layers")
    assert report.scales["layers.0.linear1.weight"] == 1


def test_seeds() -> None:
    first, second = encoder(), encoder()
    for model in (first, second):
        torch.manual_seed(3)
        tfixup_(model)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(WIDTH, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


@pytest.mark.parametrize(
    ("build", "example", "message"),
    [
        (LSTMClassifier, sequences()[0], "no transformer layer found in LSTMClassifier"),
        (resnet18, torch.zeros(1, 3, 32, 32), "no transformer layer found in ResNet"),
        (resnet18, None, "pass example_inputs"),
        (
            lambda: Stack([Layer(Attention(output=False))] * 2),
            sequences()[0],
            r"block 'layers\.0' attends, but .*output",
        ),
        (lambda: Stack([Layer(Fused("query_key_value"))] * 2), sequences()[0], r"block 'layers\.0' stacks"),
        (lambda: Stack([Layer(Fused(heads=5))] * 2), sequences()[0], r"block 'layers\.0' stacks"),
    ],
)
def test_clear_errors_and_an_unchanged_model(build: Callable[[], nn.Module], example: object, message: str) -> None:
    model = build()
    before = copy.deepcopy(model)
    with pytest.raises(mn.ConversionError, match=message):
        tfixup_(model, example, remove_normalization=True)
    assert list(model.state_dict()) == list(before.state_dict())
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_interrupted_late(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    model = encoder()
    before = copy.deepcopy(model)
    monkeypatch.setattr("momentumnet.init.tfixup.biases_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tfixup_(model, remove_normalization=True)
    assert isinstance(model.layers[0].norm1, nn.LayerNorm)
    assert model.use_nested_tensor
    assert model.layers[0].activation_relu_or_gelu == 1
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
