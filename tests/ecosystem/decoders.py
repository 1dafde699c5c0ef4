"""Small random decoders of transformers, one of each way of writing a block and its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_USUAL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_experts": 4}
# What differs from the usual: keys that another name stands for, or that the family does not have, are left out.
_FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 8},
    "Gemma4Text": {
        "head_dim": 8,
        "global_head_dim": 8,
        "sliding_window": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "Phi": {},
    "Phi3": {},
    "GPT2": {"num_key_value_heads": None, "intermediate_size": None},
    "GPTNeo": {"num_key_value_heads": None, "attention_types": [[["global", "local"], 2]], "window_size": 8},
    "GPTNeoX": {"num_key_value_heads": None},
    "GPTJ": {"num_key_value_heads": None, "intermediate_size": None, "rotary_dim": 4},
    "GPTBigCode": {"num_key_value_heads": None, "intermediate_size": None},
    "OPT": {"num_key_value_heads": None, "intermediate_size": None, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Bloom": {"num_key_value_heads": None, "intermediate_size": None, "max_position_embeddings": None},
    "Falcon": {"num_key_value_heads": None, "intermediate_size": None},
    "StableLm": {},
    "Starcoder2": {},
    "Olmo": {},
    "Olmo2": {},
    "Cohere": {},
    "Granite": {},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {**_EXPERTS, "shared_expert_intermediate_size": 16},
    "Mamba": {
        "num_attention_heads": None,
        "num_key_value_heads": None,
        "intermediate_size": None,
        "max_position_embeddings": None,
        "state_size": 8,
    },
}
NAMES = tuple(_FAMILIES)


def has(library: Any, name: str) -> bool:
    """Whether this version of transformers knows the family."""
    return hasattr(library, f"{name}Config")


def decoder(library: Any, name: str) -> nn.Module:
    """A random one in training mode."""
    settings = {key: value for key, value in {**_USUAL, **_FAMILIES[name]}.items() if value is not None}
    config = getattr(library, f"{name}Config")(**settings)
    torch.manual_seed(0)
    model: nn.Module = library.AutoModelForCausalLM.from_config(config)
    return model.train()


def batch(*, padded: bool, length: int = 12) -> dict[str, torch.Tensor]:
    """Two sequences of tokens; the second ends early where ``padded``."""
    torch.manual_seed(1)
    mask = torch.ones(2, length, dtype=torch.long)
    if padded:
        mask[1, 2 * length // 3 :] = 0
    return {"input_ids": torch.randint(5, 60, (2, length)), "attention_mask": mask}
