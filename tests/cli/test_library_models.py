"""Models that the command line is given by their names in timm, or by a config or a folder of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def test_timm(command: Callable[..., Any]) -> None:
    pytest.importorskip("timm", reason="pip install 'momentumnet[timm]'")
    done = command("inspect", "timm:test_vit", "--check", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["gradient_error"] <= 1e-5
    done = command("inspect", "timm:test_vti")
    assert done.status == 2
    assert "timm has no model 'test_vti'; did you mean test_vit" in done.err


def llama(folder: Path, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
    model.save_pretrained(folder, **options)
    return model


def test_transformers_by_folder_file_and_weights(command: Callable[..., Any], tmp_path: Path) -> None:
    model = llama(tmp_path / "llama")
    done = command("inspect", "hf:llama", "--check", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["gradient_error"] <= 1e-5
    done = command("inspect", "hf:llama/config.json", "--input", "input_ids=2x16:int64", "--json")
    assert done.status == 0, done.err
    (row,) = json.loads(done.out)["streams"]
    assert (row["path"], row["blocks"], row["shape"]) == ("model.layers", 4, [2, 16, 16])

    from momentumnet.finetuning import hf_models

    loaded = hf_models.build(tmp_path / "llama")
    assert type(loaded) is type(model)
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    (tmp_path / "llama" / "model.safetensors").unlink()
    random = hf_models.build(tmp_path / "llama")
    assert not torch.equal(random.lm_head.weight, model.lm_head.weight)


def test_a_config_that_is_none(command: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")
    done = command("inspect", "hf:nowhere")
    assert done.status == 2
    assert "hf:nowhere: there is no nowhere; give a folder with config.json" in done.err
    (tmp_path / "config.json").write_text("{")
    done = command("inspect", "hf:.")
    assert done.status == 2
    assert "config.json cannot be used: " in done.err.splitlines()[-1]
    (tmp_path / "other.json").write_text('{"model_type": "nothing"}')
    done = command("inspect", "hf:other.json")
    assert done.status == 2
    assert "other.json cannot be used: " in done.err.splitlines()[-1]


def small_settings(name: str) -> dict[str, Any]:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        "ViT": {**small, "image_size": 32, "patch_size": 8},
        "VideoMAE": {**small, "image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2},
        "Wav2Vec2": {**small, "conv_dim": [8, 8], "conv_stride": [10, 8], "conv_kernel": [10, 8]}
        | {"num_feat_extract_layers": 2, "num_conv_pos_embedding_groups": 2},
        "Whisper": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "vocab_size": 64, "max_source_positions": 20, "num_mel_bins": 8}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        "T5": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 64},
    }[name]


@pytest.mark.parametrize("name", ["ViT", "VideoMAE", "Wav2Vec2", "Whisper", "T5"])
def test_default_inputs_of_configs(command: Callable[..., Any], tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'momentumnet[hf]'")
    config = getattr(transformers, f"{name}Config")(**small_settings(name))
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    done = command("inspect", "hf:config.json", "--json")
    assert done.status == 0, done.err
    assert sum(row["blocks"] for row in json.loads(done.out)["streams"]) >= 2
