"""One torchvision model of each family, converted without names: training gradients reversible against stored."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import momentumnet as mn
from momentumnet.bench.zoo import torchvision_models as zoo
from momentumnet.bench.zoo.training_pass import gradients, largest_error

FAMILIES = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mnasnet1_0",
    "convnext_tiny",
    "shufflenet_v2_x1_0",
    "vit_b_32",
    "swin_t",
    "swin_v2_t",
    "maxvit_t",
    "mvit_v1_b",
    "fcn_resnet50",
    "fasterrcnn_resnet50_fpn",
    "r3d_18",
    "raft_small",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_training_gradients_equal_stored(name: str) -> None:
    model = zoo.build(name)
    example, step = zoo.inputs(name), zoo.inputs(name, training=True)
    found, states = [], []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, example, backward=backward).train()
        assert list(net.state_dict()) == list(model.state_dict())
        found.append(gradients(net, step))
        states.append({key: value.clone() for key, value in net.named_buffers()})
        del net
        gc.collect()
    stored, reversible = found
    assert any(gradient.norm() > 0 for gradient in stored.values())
    assert largest_error(reversible, stored) <= 1e-5
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key


@pytest.mark.parametrize("name", ["vgg11", "densenet121"])
def test_networks_without_streams_say_so(name: str) -> None:
    with pytest.raises(mn.ConversionError, match="no residual stream found"):
        mn.convert(zoo.build(name), zoo.inputs(name))


@pytest.mark.parametrize("others", ["keep", "checkpoint"])
def test_resnet50_state_dict_and_others(others: str) -> None:
    model = zoo.build("resnet50")
    nets = [
        mn.convert(model, zoo.inputs("resnet50"), backward=backward, others=other).train()
        for backward, other in (("stored", "keep"), ("reversible", others))
    ]
    assert list(nets[1].state_dict()) == list(model.state_dict())
    stored, reversible = (gradients(net, zoo.inputs("resnet50")) for net in nets)
    assert largest_error(reversible, stored) <= 1e-6
    for name, buffer in nets[0].named_buffers():
        assert torch.equal(nets[1].get_buffer(name), buffer), name
    nets[1].load_state_dict(zoo.build("resnet50", seed=5).state_dict())
    model.load_state_dict(nets[1].state_dict())


def _transformer(**options: object) -> nn.Transformer:
    torch.manual_seed(0)
    return nn.Transformer(16, 2, 3, 3, 32, dropout=0.1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_with_every_mask(batch_first: bool, norm_first: bool) -> None:
    model = _transformer(batch_first=batch_first, norm_first=norm_first)
    source, target = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    if not batch_first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    inputs = {
        "src": source,
        "tgt": target,
        "src_mask": torch.zeros(5, 5),
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(4),
        "memory_mask": torch.zeros(4, 5),
        "src_key_padding_mask": torch.tensor([[0.0] * 5, [0.0] * 4 + [float("-inf")]]),
        "tgt_key_padding_mask": torch.tensor([[0.0] * 4, [0.0] * 3 + [float("-inf")]]),
        "memory_key_padding_mask": torch.tensor([[0.0] * 5, [0.0] * 4 + [float("-inf")]]),
        "tgt_is_causal": True,
    }
    assert [s.path for s in mn.find_streams(model, inputs)] == ["encoder.layers", "decoder.layers"]
    found = []
    for backward in ("stored", "reversible"):
        net = mn.convert(model, inputs, backward=backward).train()
        found.append(gradients(net, inputs))
    assert largest_error(found[1], found[0]) <= 1e-6


def test_encoder_fast_path_in_inference() -> None:
    """In eval mode without gradients the encoder may pack the batch into a nested tensor before its loop."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).eval()
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    net = mn.convert(model, {"src": x, "src_key_padding_mask": padding}).eval()
    slow = net(x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        fast = net(x, src_key_padding_mask=padding)
    kept = ~padding
    torch.testing.assert_close(fast[kept], slow[kept], rtol=1e-4, atol=1e-5)
