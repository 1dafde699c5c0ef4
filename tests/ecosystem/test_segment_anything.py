"""SAM's decoder: points and image attend to each other in blocks that change both, which are carried as one state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import momentumnet as mn

transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")

SIDE, LAYERS = 64, 4


def segmenter() -> nn.Module:
    torch.manual_seed(0)
    vision = transformers.SamVisionConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        output_channels=16,
        mlp_dim=64,
        window_size=4,
        num_pos_feats=8,
        global_attn_indexes=[1, 3],
    )
    prompts = transformers.SamPromptEncoderConfig(hidden_size=16, image_size=SIDE, patch_size=8, mask_input_channels=4)
    masks = transformers.SamMaskDecoderConfig(
        hidden_size=16, num_hidden_layers=LAYERS, num_attention_heads=2, mlp_dim=32, iou_head_hidden_dim=16
    )
    config = transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)
    return transformers.SamModel(config)


def prompted() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, SIDE, SIDE), "input_points": torch.rand(2, 1, 3, 2) * SIDE}


def test_points_and_image_are_carried_together() -> None:
    gradients = []
    for backward in ("reversible", "stored"):
        net = mn.convert(segmenter(), prompted(), backward=backward).train()
        output = net(**prompted())
        (output.pred_masks.square().mean() + output.iou_scores.sum()).backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    encoder, decoder = mn.describe(net)["streams"]
    assert len(encoder["blocks"]) == 4
    assert len(decoder["blocks"]) == LAYERS - 1  # the first one adds the positions in another way
    assert len(decoder["companions"]) == 1
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, rtol=1e-6, atol=1e-9)
