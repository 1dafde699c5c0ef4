"""Fixup of networks other than ResNets of images: where branches, norms and classifiers are others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from tests.init.fixed_up import Residual, expected_draws, fixed, images


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


def test_a_resnet_of_one_block_a_stage() -> None:
    """No block keeps the shape; it was refused as a network without a residual block."""
    torch.manual_seed(0)
    model = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3)
    report = fixed(model)
    assert report.notes[0] == "4 residual branches in 4 blocks, of 3 weight layers"
    factors = {f"layer{stage}.0.conv{layer}.weight": 4 ** (-1 / 4) for stage in (1, 2, 3, 4) for layer in (1, 2)}
    zeros = {f"layer{stage}.0.conv3.weight": 0.0 for stage in (1, 2, 3, 4)}
    for name, draw in expected_draws(model, {**factors, **zeros, "fc.weight": 0.0}).items():
        torch.testing.assert_close(model.get_parameter(name).detach(), draw, msg=name)


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
