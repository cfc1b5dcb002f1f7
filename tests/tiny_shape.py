"""The shape of the models that tests of decoding and of the exported package share, in the words of `config.json`."""

from __future__ import annotations

from typing import Any

EOS, MASK = 2, 5
# Lengths in the tests pass the original length, so that yarn and the query scale are at work.
SHAPE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}
