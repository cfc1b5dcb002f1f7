"""Plain exports with a byte tokenizer, and of a size of heads that the CPU build of vLLM has: 32, not 8 to 20."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import vision_models
from transformers import Ministral3Config, Ministral3ForCausalLM, PreTrainedTokenizerFast

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.importing import import_checkpoint
from nld_train.config.schema import VisionConfig
from nld_train.data.tokenizer import SPECIAL_TOKENS, bytes_tokenizer

HEAD_DIM = 32
_YARN = {**vision_models.TEXT["rope_parameters"], "original_max_position_embeddings": 32, "factor": 8.0}
# Prompts and answers pass the original length of 32, so that the query scale and every kind of frequency matter.
ROPES: dict[str, dict[str, Any]] = {
    "yarn": _YARN,
    "lengthened": {**_YARN, "mscale_all_dim": 0.7, "llama_4_scaling_beta": 0.5},
    "plain": {
        "rope_type": "default",
        "rope_theta": 777.0,
        "llama_4_scaling_beta": 0.0,
        "original_max_position_embeddings": 256,
    },
}
SHAPE: dict[str, Any] = {
    **vision_models.TEXT,
    "vocab_size": 260,
    "head_dim": HEAD_DIM,
}


def write_text_model(folder: Path, rope: str, tied: bool) -> None:
    """`source`, a stock model with random weights; `imported`; and the exports `plain` and `nld`."""
    text = {key: value for key, value in SHAPE.items() if key not in ("model_type", "tie_word_embeddings")}
    config = Ministral3Config(**text | {"rope_parameters": ROPES[rope]}, tie_word_embeddings=tied, sliding_window=None)
    model = Ministral3ForCausalLM(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            random = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.3 * random if weight.dim() == 1 else 1.4 * random / math.sqrt(weight.shape[-1]))
        # A special token is never the likeliest: vLLM would write the mask token, which our decoder does not.
        model.lm_head.weight[: len(SPECIAL_TOKENS)] = 0
    model.save_pretrained(folder / "source")
    names = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_tokenizer(), chat_template=vision_models.TEMPLATE, **names
    )
    tokenizer.save_pretrained(folder / "source")
    import_checkpoint(folder / "source", folder / "imported", vision_models.MASK, report=lambda _: None)
    for output_format, name in (("ministral3", "plain"), ("nld", "nld")):
        export_checkpoint(folder / "imported", folder / name, output_format, report=lambda _: None)


def write_vision_model(folder: Path) -> None:
    """The same of a model with a vision tower; its processor files are those that this project writes."""
    vision_models.save_vision_model(folder / "source")
    (folder / "source" / "processor_config.json").unlink()
    vision_models.convert(folder)
    export_checkpoint(folder / "imported", folder / "plain", "ministral3", report=lambda _: None)


def vision_config(directory: Path) -> VisionConfig:
    """The tower of an export."""
    found = HuggingFaceWeights(directory, vision=True).model.vision
    assert found is not None
    return found
