"""Small random configurations of transformers: what differs from `SMALL`, by class and kind of input.

A setting of `SMALL` is given where the configuration knows it and nothing else is said here; None leaves it out.
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]

SMALL: Settings = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64,
    "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_dim": 48, "d_kv": 8, "d_ff": 48,
    "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4, "image_size": 32, "patch_size": 8, "num_channels": 3,
    "moe_intermediate_size": 16, "num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4,
    "shared_expert_intermediate_size": 16, "mask_time_prob": 0.0, "mask_feature_prob": 0.0,
}  # fmt: skip

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 8}
_HYBRID = ["linear_attention", "full_attention"] * 2

# Decoders, each with a cache of keys and values, or of states; they take tokens.
DECODERS: dict[str, Settings] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 8},
    "Qwen2ForCausalLM": {},
    "Qwen3ForCausalLM": {"head_dim": 8},
    "GemmaForCausalLM": {"head_dim": 8},
    "Gemma2ForCausalLM": {"head_dim": 8, "sliding_window": 8},
    "Gemma3ForCausalLM": {"head_dim": 8, "sliding_window": 8},
    "Gemma4ForCausalLM": {
        "head_dim": 8,
        "global_head_dim": 8,
        "sliding_window": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "PhiForCausalLM": {},
    "Phi3ForCausalLM": {},
    "GPT2LMHeadModel": {},
    "GPTNeoForCausalLM": {
        "attention_types": [[["global", "local"], 2]],
        "window_size": 8,
        "num_layers": 4,
        "intermediate_size": None,
    },
    "GPTNeoXForCausalLM": {},
    "GPTJForCausalLM": {"rotary_dim": 4},
    "GPTBigCodeForCausalLM": {},
    "OPTForCausalLM": {"word_embed_proj_dim": 32},
    "BloomForCausalLM": {},
    "FalconForCausalLM": {},
    "StableLmForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "OlmoForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "CohereForCausalLM": {},
    "GraniteForCausalLM": {},
    "SmolLM3ForCausalLM": {},
    "PersimmonForCausalLM": {},
    "NemotronForCausalLM": {},
    "CodeGenForCausalLM": {"rotary_dim": 4},
    "XGLMForCausalLM": {"attention_heads": 4},
    "MptForCausalLM": {"n_heads": 4, "n_layers": 4, "max_seq_len": 64},
}

# Mixtures of experts.
EXPERTS: dict[str, Settings] = {
    "MixtralForCausalLM": {},
    "Qwen2MoeForCausalLM": {},
    "Qwen3MoeForCausalLM": {"head_dim": 8},
    "OlmoeForCausalLM": {},
    "GptOssForCausalLM": {"head_dim": 8, "sliding_window": 8},
    "GraniteMoeForCausalLM": {},
    "PhimoeForCausalLM": {},
    "DeepseekV3ForCausalLM": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
    },
}

# Models of a state space, and hybrids of them with attention.
STATE_SPACES: dict[str, Settings] = {
    "MambaForCausalLM": {"state_size": 8},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8},
    "FalconMambaForCausalLM": {"state_size": 8},
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 6, "lru_width": 32, "attention_window_size": 8},
    "Zamba2ForCausalLM": {
        "n_mamba_heads": 8,
        "mamba_d_state": 8,
        "chunk_size": 8,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention"],
    },
    "BambaForCausalLM": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "FalconH1ForCausalLM": {**_MAMBA, "mamba_d_ssm": 64},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "Qwen3NextForCausalLM": {
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": _HYBRID,
    },
    "Lfm2ForCausalLM": {"block_multiple_of": 8, "full_attn_idxs": [1, 3]},
    "RwkvForCausalLM": {},
}

# Encoders of tokens.
ENCODERS: dict[str, Settings] = {
    "BertModel": {},
    "RobertaModel": {"max_position_embeddings": 72},
    "AlbertModel": {"embedding_size": 16},
    "DistilBertModel": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 48},
    "ElectraModel": {"embedding_size": 16},
    "DebertaModel": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "DebertaV2Model": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
    "ModernBertModel": {"local_attention": 16},
    "MPNetModel": {"max_position_embeddings": 72},
    "ConvBertModel": {"embedding_size": 32, "conv_kernel_size": 3},
    "SqueezeBertModel": {"embedding_size": 32},
    "MobileBertModel": {"embedding_size": 16, "intra_bottleneck_size": 16},
    "FunnelModel": {"block_sizes": [2, 2], "d_head": 8, "d_inner": 48, "num_decoder_layers": 2},
    "FNetModel": {},
    "NystromformerModel": {"num_landmarks": 48, "segment_means_seq_len": 48},
    "XLNetModel": {"d_inner": 48, "pad_token_id": 0},
    "LongformerModel": {"attention_window": 8, "max_position_embeddings": 72},
    "BigBirdModel": {"attention_type": "original_full"},
    "RoFormerModel": {"embedding_size": 32},
    "EsmModel": {"max_position_embeddings": 72},
    "RemBertModel": {"input_embedding_size": 16},
    "MegatronBertModel": {},
    "RobertaPreLayerNormModel": {"max_position_embeddings": 72},
    "NomicBertModel": {},
}

# An encoder and a decoder; they take tokens for both.
ENCODER_DECODERS: dict[str, Settings] = {
    "T5Model": {},
    "UMT5Model": {},
    "BartModel": {},
    "MBartModel": {},
    "PegasusModel": {},
    "M2M100Model": {},
    "MarianModel": {"decoder_vocab_size": 64},
    "BlenderbotModel": {},
    "PLBartModel": {},
    "SwitchTransformersModel": {"expert_capacity": 8, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "ProphetNetModel": {
        "num_encoder_layers": 3,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
    },
}

_STAGES: Settings = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 2, 4, 2]}
_PYRAMID: Settings = {**_STAGES, "num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2, 2, 2, 2]}

_DETECTION: Settings = {
    "num_queries": 8, "use_timm_backbone": False,
    "backbone_config": {"model_type": "resnet", **_STAGES, "embedding_size": 8, "out_features": ["stage4"]},
}  # fmt: skip

# Images of 3 x 32 x 32.
IMAGES: dict[str, Settings] = {
    "ViTModel": {},
    "DeiTModel": {},
    "BeitModel": {},
    "Data2VecVisionModel": {},
    "Dinov2Model": {},
    "DINOv3ViTModel": {},
    "ViTMAEModel": {},
    "ViTMSNModel": {},
    "IJepaModel": {},
    "YolosModel": {"image_size": [32, 32], "num_detection_tokens": 4},
    "CLIPVisionModel": {},
    "SiglipVisionModel": {},
    "SwinModel": {"embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2], "patch_size": 2, "window_size": 4},
    "Swinv2Model": {"embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2], "patch_size": 2, "window_size": 4},
    "FocalNetModel": {
        "embed_dim": 8, "depths": [2, 4], "hidden_sizes": [8, 16], "focal_levels": [2, 2], "focal_windows": [3, 3],
        "patch_size": 4,
    },
    "HieraModel": {
        "embed_dim": 8, "image_size": [64, 64], "patch_size": [7, 7], "depths": [2, 3, 4, 2], "num_heads": [1, 1, 2, 2],
    },
    "SegformerModel": _PYRAMID,
    "GLPNModel": _PYRAMID,
    "PvtV2Model": _PYRAMID,
    "PoolFormerModel": _STAGES,
    "ConvNextModel": {**_STAGES, "patch_size": 4},
    "ConvNextV2Model": {**_STAGES, "patch_size": 4},
    "ResNetModel": {**_STAGES, "embedding_size": 8},
    "RegNetModel": {**_STAGES, "embedding_size": 8, "groups_width": 8},
    "BitModel": {**_STAGES, "embedding_size": 8, "num_groups": 2},
    "MobileViTModel": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 24, 24, 32, 48], "patch_size": 2},
    "SwiftFormerModel": {"embed_dims": [8, 16, 24, 32], "depths": [3, 3, 4, 2]},
    "CvtModel": {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 2], "depth": [1, 2, 4]},
    "DetrModel": _DETECTION,
    "ConditionalDetrModel": _DETECTION,
}  # fmt: skip

# Detection with a loss behind each layer of the decoder, which is normalised there.
DETECTION_LOSSES: dict[str, Settings] = {"DetrModel": {**IMAGES["DetrModel"], "auxiliary_loss": True}}

# Videos of 4 frames.
VIDEOS: dict[str, Settings] = {
    "VideoMAEModel": {"num_frames": 4, "tubelet_size": 2},
    "TimesformerModel": {"num_frames": 4},
    "VivitModel": {"num_frames": 4, "tubelet_size": [2, 8, 8]},
}

_CONVOLUTIONS: Settings = {
    "conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip

# Waveforms.
WAVES: dict[str, Settings] = {
    "Wav2Vec2Model": _CONVOLUTIONS,
    "HubertModel": _CONVOLUTIONS,
    "WavLMModel": _CONVOLUTIONS,
    "UniSpeechModel": _CONVOLUTIONS,
    "UniSpeechSatModel": _CONVOLUTIONS,
    "Wav2Vec2ConformerModel": {**_CONVOLUTIONS, "conv_depthwise_kernel_size": 3},
    "SEWModel": {**_CONVOLUTIONS, "squeeze_factor": 2},
    "SEWDModel": {**_CONVOLUTIONS, "squeeze_factor": 2},
    "Data2VecAudioModel": {**_CONVOLUTIONS, "conv_pos_kernel_size": 3, "num_conv_pos_embeddings": 2},
}

# Spectrograms, by the name of the argument.
SPECTROGRAMS: dict[str, Settings] = {
    "ASTModel": {"max_length": 24, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
    "Wav2Vec2BertModel": {"feature_projection_input_dim": 16, "conv_depthwise_kernel_size": 3},
}

# Speech to text.
SPEECH: dict[str, Settings] = {
    "WhisperModel": {"num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 64},
    "Speech2TextModel": {"input_feat_per_channel": 16, "conv_channels": 16, "max_source_positions": 32},
}

# Tokens and images; the parts' classes of configurations, then what they need beside `SMALL`.
PAIRS: dict[str, dict[str, tuple[str, Settings]]] = {
    "CLIPModel": {"text_config": ("CLIPTextConfig", {}), "vision_config": ("CLIPVisionConfig", {})},
    "SiglipModel": {"text_config": ("SiglipTextConfig", {}), "vision_config": ("SiglipVisionConfig", {})},
    "ChineseCLIPModel": {
        "text_config": ("ChineseCLIPTextConfig", {}), "vision_config": ("ChineseCLIPVisionConfig", {}),
    },
    "AltCLIPModel": {
        "text_config": ("AltCLIPTextConfig", {"max_position_embeddings": 72, "project_dim": 32}),
        "vision_config": ("AltCLIPVisionConfig", {}),
    },
    "BlipModel": {
        "text_config": ("BlipTextConfig", {"encoder_hidden_size": 32}), "vision_config": ("BlipVisionConfig", {}),
    },
    "LlavaForConditionalGeneration": {
        "text_config": ("LlamaConfig", {}), "vision_config": ("CLIPVisionConfig", {}),
    },
}  # fmt: skip

# Others of several inputs.
MIXED: dict[str, Settings] = {
    "ViltModel": {},
    "LxmertModel": {"l_layers": 3, "x_layers": 3, "r_layers": 3, "visual_feat_dim": 16},
    "VisualBertModel": {"visual_embedding_dim": 16},
    "PatchTSTModel": {"context_length": 16, "patch_length": 4, "patch_stride": 4},
    "DecisionTransformerModel": {"state_dim": 4, "act_dim": 2, "max_ep_len": 16},
}
