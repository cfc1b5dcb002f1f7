"""Exported directories made by hand: random weights, a config, and the package's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_shape import MASK, SHAPE
from torch import Tensor

from checkpoint_convert.hf_package import AUTO_MAP, package_files

STOP = 58
CONFIG: dict[str, Any] = {
    "architectures": ["NemotronLabsDiffusionModel"],
    "model_type": "nemotron_labs_diffusion",
    "auto_map": AUTO_MAP,
    "dtype": "float32",
    **SHAPE,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "mask_token_id": MASK,
    "block_size": 8,
    "dlm_paradigm": "bidirectional",
    "dlm_loss_weight": 0.3,
    "ar_loss_weight": 1.0,
}


def random_weights(seed: int = 0, scale: float = 0.3) -> dict[str, Tensor]:
    """Tensors under the names of docs/method.md, "Exported checkpoint"."""
    generator = torch.Generator().manual_seed(seed)
    hidden, width = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    queries, keys = 4 * CONFIG["head_dim"], 2 * CONFIG["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"encoder.embed_tokens": (60, hidden), "diffusion_head": (60, hidden)}
    for layer in range(CONFIG["num_hidden_layers"]):
        at = f"encoder.layers.{layer}"
        shapes |= {f"{at}.self_attn.q_proj": (queries, hidden), f"{at}.self_attn.o_proj": (hidden, queries)}
        shapes |= {f"{at}.self_attn.{name}_proj": (keys, hidden) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj": (width, hidden) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (hidden, width)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}
    norms = ["encoder.norm"] + [
        f"encoder.layers.{layer}.{name}_layernorm" for layer in range(2) for name in ("input", "post_attention")
    ]
    return tensors | {f"{name}.weight": 1 + 0.1 * torch.randn(hidden, generator=generator) for name in norms}


def write_export(directory: Path, **changes: Any) -> Path:
    """A directory like an export, with `changes` in its config."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [STOP], "pad_token_id": 0}))
    save_file(random_weights(), directory / "model.safetensors", metadata={"format": "pt"})
    for name, text in package_files().items():
        (directory / name).write_text(text)
    return directory


def write_adapter(directory: Path, rank: int = 4, target: str = "o_proj", layers: int = 2) -> Path:
    """A drafter adapter in PEFT layout, with the names of docs/method.md, "Exported checkpoint"."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": "LORA", "task_type": None, "r": rank, "lora_alpha": 4 * rank, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": [target]}))
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        at = f"base_model.model.encoder.layers.{layer}.self_attn.{target}"
        tensors[f"{at}.lora_A.weight"] = torch.randn(4, 48, generator=generator)
        tensors[f"{at}.lora_B.weight"] = torch.randn(40, 4, generator=generator)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


def ministral3(weights: dict[str, Tensor]) -> torch.nn.Module:
    """The stock model of `transformers` on the same weights."""
    from transformers import Ministral3Config, Ministral3ForCausalLM

    names = set(Ministral3Config().to_dict()) - {"architectures", "model_type"}
    config = Ministral3Config(**{key: value for key, value in CONFIG.items() if key in names})
    model = Ministral3ForCausalLM._from_config(config, attn_implementation="eager")
    model.load_state_dict(
        {name.replace("encoder.", "model.").replace("diffusion_head", "lm_head"): x for name, x in weights.items()}
    )
    return model.eval()
