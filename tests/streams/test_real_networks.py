"""Streams of torchvision and torch.nn networks: lengths as their definitions and an independent survey give them."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from momentumnet.streams import discover, find_streams
from tests.streams.nets import summary

IMAGE_MODELS = {
    "resnet18": (64, "postact", [("layer1", 2)]),
    "resnet50": (64, "postact", [("layer1", 2), ("layer2", 3), ("layer3", 5), ("layer4", 2)]),
    "convnext_tiny": (64, "additive", [("features.1", 3), ("features.3", 3), ("features.5", 9), ("features.7", 3)]),
    "efficientnet_v2_s": (64, "additive", [(f"features.{i + 1}", n) for i, n in enumerate((2, 3, 3, 5, 8, 14))]),
    "mobilenet_v3_small": (64, "additive", [("features", 2), ("features", 2)]),
    "regnet_y_400mf": (64, "postact", [(f"trunk_output.block{i}", n) for i, n in ((2, 2), (3, 5), (4, 5))]),
    "swin_v2_t": (64, "additive", [("features.1", 2), ("features.3", 2), ("features.5", 6), ("features.7", 2)]),
    "shufflenet_v2_x0_5": (64, "concat", [("stage2", 3), ("stage3", 7), ("stage4", 3)]),
    # The window and grid attention that follow each stage's strided convolution pass their stream on to the next
    # layer, which is another container.
    "maxvit_t": (224, "additive", [(f"blocks.{i}.layers", n) for i, n in enumerate((5, 5, 6, 5))]),
    "densenet121": (64, "", []),
    "vgg11_bn": (64, "", []),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_torchvision_classification(name):
    size, kind, expected = IMAGE_MODELS[name]
    model = torchvision.models.get_model(name, weights=None)
    found = find_streams(model, torch.randn(1, 3, size, size))
    assert [(stream.path, len(stream)) for stream in found] == expected
    assert {stream.kind for stream in found} <= {kind}


def test_torchvision_segmentation_and_detection_backbones():
    segmentation = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    lengths = [(f"backbone.layer{i}", n, "postact") for i, n in ((1, 2), (2, 3), (3, 5), (4, 2))]
    assert summary(segmentation, torch.randn(1, 3, 64, 64)) == lengths

    detection = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    # mobilenet_v3_large: 40, 80 and 160 channels; IntermediateLayerGetter calls the blocks one by one.
    expected = [("backbone.body", length, "additive") for length in (2, 3, 2)]
    assert summary(detection, [torch.rand(3, 128, 128)]) == expected


def test_torchvision_raft_calls_its_update_block_several_times():
    model = torchvision.models.optical_flow.raft_small(weights=None)
    images = torch.randn(2, 1, 3, 128, 128)
    found = find_streams(model, {"image1": images[0], "image2": images[1], "num_flow_updates": 3})
    repeated = [stream for stream in found if stream.path == ""]
    assert [(stream.blocks, stream.kind) for stream in repeated] == [(("update_block",) * 3, "gated")]
    assert [(stream.path, len(stream)) for stream in found if stream.path] == [
        ("feature_encoder.layer1", 2),
        ("context_encoder.layer1", 2),
    ]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_transformer(batch_first, norm_first):
    model = nn.Transformer(8, 2, 3, 2, 16, batch_first=batch_first, norm_first=norm_first)
    source, target = torch.randn(4, 4, 8), torch.randn(4, 4, 8)
    padding = torch.zeros(4, 4, dtype=torch.bool)
    padding[:, -1] = True
    arguments = {
        "src": source,
        "tgt": target,
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(4),
        "src_key_padding_mask": padding,
        "memory_key_padding_mask": padding,
    }
    kind = "additive" if norm_first else "postact"
    assert summary(model, arguments) == [("encoder.layers", 3, kind), ("decoder.layers", 2, kind)]
    assert summary(model, (source, target)) == [("encoder.layers", 3, kind), ("decoder.layers", 2, kind)]


@pytest.mark.parametrize("enable_nested_tensor", [False, True])
def test_frozen_transformer_encoder_is_not_taken_by_the_fast_path(enable_nested_tensor):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=enable_nested_tensor).requires_grad_(False).eval()
    padding = torch.tensor([[False, False, True], [False, True, True]])
    found = discover(model, {"src": torch.randn(2, 3, 8), "src_key_padding_mask": padding})
    assert [(stream.path, len(stream), stream.kind) for stream in found.streams] == [("layers", 3, "postact")]


def test_transformer_decoder_takes_the_memory_as_a_side_input():
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 4)
    assert summary(model, (torch.randn(3, 2, 8), torch.randn(5, 2, 8))) == [("layers", 4, "postact")]
