"""A choice of `momentumnet bench zoo`: each way of writing blocks once, every gradient within 1e-5 of stored ones.

Blocks are counted as the configurations have them: in streams, and of all. The rest by the command.
"""

from __future__ import annotations

import pytest

from momentumnet.bench.zoo.entries import Entry, entries, missing
from momentumnet.bench.zoo.measure import measure

# Of transformers: how many blocks the streams have.
TRANSFORMERS: dict[str, list[int]] = {
    "GptOssForCausalLM": [4],
    "DeepseekV3ForCausalLM": [4],
    "Mamba2ForCausalLM": [4],
    "JambaForCausalLM": [4],
    "Qwen3NextForCausalLM": [4],
    "Zamba2ForCausalLM": [4],
    "BertModel": [4],
    "AlbertModel": [4],
    "DebertaV2Model": [4],
    "FunnelModel": [2, 2, 2],
    "XLNetModel": [4],
    "T5Model": [3, 3],
    "BartModel": [3, 3],
    "SwitchTransformersModel": [3, 3],
    "ViTModel": [4],
    "SwinModel": [2, 4],
    "ConvNextModel": [2, 2, 4, 2],
    "ResNetModel": [2, 3],  # the first block of a stage changes the shape, and another one alone is no stream
    "SegformerModel": [2, 2, 4, 2],
    "VideoMAEModel": [4],
    "Wav2Vec2Model": [4],
    "WavLMModel": [4],
    "WhisperModel": [3, 3],
    "CLIPModel": [4, 4],
    "LlavaForConditionalGeneration": [4, 4],
}
# Of timm: the same.
TIMM: dict[str, list[int]] = {
    "cait_xxs24_224": [24, 2],  # two of class attention, which take the stream as their second argument
    "convnext_atto": [2, 2, 6, 2],
    "crossvit_tiny_240": [4, 4, 4],  # of the larger patches; one of the smaller ones stands alone in each stage
    "davit_tiny": [2, 2, 6, 2],  # attention in windows and between channels, in turns
    "hiera_tiny_224": [6],
    "mobilevit_xxs": [2, 2, 4, 3],
    "mvitv2_tiny": [4],
    "nfnet_l0": [5, 2],
    "swin_tiny_patch4_window7_224": [2, 2, 6, 2],
    "vit_tiny_patch16_224": [12],
    "xcit_nano_12_p16_224": [12, 2],
}


def _entry(library: str, name: str) -> Entry:
    if missing([library]):
        pytest.skip(f"{library} is not installed")
    found = next((entry for entry in entries([library]) if entry.name == name), None)
    return found or pytest.skip(f"the installed version of {library} has no {name}")


@pytest.mark.parametrize(
    ("library", "name", "blocks"),
    [
        *(("transformers", name, blocks) for name, blocks in TRANSFORMERS.items()),
        *(("timm", name, blocks) for name, blocks in TIMM.items()),
    ],
)
def test_streams_and_gradients(library: str, name: str, blocks: list[int]) -> None:
    row = measure(_entry(library, name))
    assert row["refusal"] == ""
    assert [length for _, length in row["streams"]] == blocks
    assert row["gradient_error"] <= 1e-5
    assert row["checkpointed_bytes"] <= 1.01 * row["kept_bytes"] < row["saved_bytes"]
