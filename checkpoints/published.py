"""What published models look like from outside: config.json, special tokens, turns of a conversation."""

import tempfile
from pathlib import Path
from typing import Any

from checkpoints.config import ModelConfig, read_config
from checkpoints.files import write_json

MULTIMODAL = "phi4-multimodal"
# fmt: off
LONG_FACTOR = [
    1, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649,
    2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533,
    5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651,
    14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03,
    32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5,
    44.16, 47.77,
]
# fmt: on

# config.json as published, without the keys that name remote code.
CONFIGS: dict[str, dict[str, Any]] = {
    "phi4-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 199999,
        "embd_pdrop": 0.0,
        "eos_token_id": 199999,
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 199999,
        "partial_rotary_factor": 0.75,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"long_factor": LONG_FACTOR, "short_factor": [1.0] * 48, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 200064,
    },
    "phi3-mini-4k": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "embd_pdrop": 0.0,
        "eos_token_id": 32000,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "model_type": "phi3",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 32000,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 2047,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 32064,
    },
}

# What main's config.json of Phi-4-multimodal has beside the keys of phi4-mini, without those that name remote code
# and those that only training reads.
PHI4MM: dict[str, Any] = {
    "architectures": ["Phi4MMForCausalLM"],
    "model_type": "phi4mm",
    "audio_processor": {
        "config": {
            "activation": "swish",
            "attention_dim": 1024,
            "attention_heads": 16,
            "batch_norm": False,
            "bias_in_glu": True,
            "causal": True,
            "chunk_size": -1,
            "cnn_layer_norm": True,
            "conv_activation": "swish",
            "conv_glu_type": "swish",
            "depthwise_multiplier": 1,
            "depthwise_seperable_out_channel": 1024,
            "dropout_rate": 0.0,
            "encoder_embedding_config": {"input_size": 80},
            "ext_pw_kernel_size": 1,
            "ext_pw_out_channel": 1024,
            "input_layer": "nemo_conv",
            "input_size": 80,
            "kernel_size": 3,
            "left_chunk": 18,
            "linear_units": 1536,
            "nemo_conv_settings": {"conv_channels": 1024},
            "num_blocks": 24,
            "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
            "time_reduction": 8,
        },
        "name": "cascades",
    },
    "embd_layer": {
        "audio_embd_layer": {
            "compression_rate": 8,
            "downsample_rate": 1,
            "embedding_cls": "audio",
            "projection_cls": "mlp",
            "use_conv_downsample": False,
            "use_qformer": False,
        },
        "embedding_cls": "image_audio",
        "image_embd_layer": {
            "crop_size": 448,
            "embedding_cls": "tune_image",
            "hd_transform_order": "sub_glb",
            "image_token_compression_cls": "avg_pool_2d",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
    },
    "img_processor": None,
    "speech_lora": {
        "dp": 0.01,
        "layer": r"((layers.*self_attn\.(qkv|o)_proj)|(layers.*mlp\.(gate_up|down)_proj))",
        "lora_alpha": 640,
        "r": 320,
    },
    "vision_lora": {
        "dp": 0.0,
        "layer": r"layers.*((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))",
        "lora_alpha": 512,
        "r": 256,
    },
}
TEXT_OF = {MULTIMODAL: "phi4-mini"}  # whose text model is the same as another's
IMAGE_TOKEN, AUDIO_TOKEN = "<|endoftext10|>", "<|endoftext11|>"

# Tokens before the bytes, and tokens after the merges by their published ids; a smaller vocabulary ends with
# the latter in the same order.
FIRST: dict[str, list[str]] = {"phi4-mini": [], MULTIMODAL: [], "phi3-mini-4k": ["<unk>", "<s>", "</s>"]}
_TURNS = {
    "<|assistant|>": 200019,
    "<|end|>": 200020,
    "<|user|>": 200021,
    "<|system|>": 200022,
    "<|tool|>": 200023,
    "<|/tool|>": 200024,
    "<|tool_call|>": 200025,
    "<|/tool_call|>": 200026,
    "<|tool_response|>": 200027,
}
LAST = {
    "phi4-mini": {"<|endoftext|>": 199999, **_TURNS},
    MULTIMODAL: {"<|endoftext|>": 199999, IMAGE_TOKEN: 200010, AUDIO_TOKEN: 200011, **_TURNS},
    "phi3-mini-4k": {
        "<|endoftext|>": 32000,
        "<|assistant|>": 32001,
        "<|system|>": 32006,
        "<|end|>": 32007,
        "<|user|>": 32010,
    },
}
ENDS = {
    "phi4-mini": ["<|end|>", "<|endoftext|>"],
    MULTIMODAL: ["<|end|>", "<|endoftext|>"],
    "phi3-mini-4k": ["<|end|>", "<|assistant|>", "<|endoftext|>"],
}
TURN = {
    "phi4-mini": "",
    MULTIMODAL: "",
    "phi3-mini-4k": "\\n",
}  # what the chat template puts after each special token


def published_config(like: str = "phi4-mini") -> ModelConfig:
    """The configuration of a published model, without its files; it names no end tokens but its config.json's."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder, "config.json"), CONFIGS[like])
        return read_config(Path(folder))
