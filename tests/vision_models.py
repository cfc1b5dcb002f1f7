"""A tiny Mistral3 wrapper with tokenizer and processor, imported and exported, for the tests of several packages."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import VISION
from PIL import Image
from shared import shared_folder
from tokenizers import AddedToken
from transformers import LogitsProcessorList, Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedTokenizerFast

from checkpoint_convert.exporting import export_checkpoint
from checkpoint_convert.hf_package.block_decoding import NoMaskToken
from checkpoint_convert.hf_package.serve import has_torchvision
from checkpoint_convert.importing import import_checkpoint
from nld_train.data.tokenizer import SPECIAL_TOKENS, bytes_tokenizer
from nld_train.model.vision.picture_prompt import pictures_of

PAD, BOS, EOS, MASK = range(len(SPECIAL_TOKENS))
IMAGE_TOKENS = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
IMG, BREAK, END = 260, 261, 262
# A turn is its content between a letter and the end token.
TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}{% if message.content is string %}{{ message.content }}"
    "{% else %}"
    "{% for part in message.content %}{{ part.text if part.type == 'text' else '[IMG]' }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
)
TEXT = {
    "model_type": "ministral3",
    "vocab_size": 264,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
}
_TOWER = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")


def wrapper() -> Mistral3ForConditionalGeneration:
    """Random weights, large enough that every picture tells."""
    config = Mistral3Config(
        text_config=TEXT,
        vision_config={"model_type": "pixtral", "hidden_act": "silu", **{name: VISION[name] for name in _TOWER}},
        tie_word_embeddings=False,
        image_token_index=IMG,
    )
    model = Mistral3ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            random = torch.randn(weight.shape, generator=generator)
            width = 1 if "embed" in name or weight.dim() == 1 else weight[0].numel()
            weight.copy_(1 + 0.3 * random if weight.dim() == 1 else 1.4 * random * width**-0.5)
    return model


def save_vision_model(directory: Path) -> Mistral3ForConditionalGeneration:
    """Writes the wrapper, a byte tokenizer with the tokens of pictures and a chat template, and the processor."""
    model = wrapper()
    model.save_pretrained(directory)
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in IMAGE_TOKENS])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)
    assert fast.convert_tokens_to_ids(list(IMAGE_TOKENS)) == [IMG, BREAK, END]
    fast.save_pretrained(directory)
    processor = {"image_processor": {"size": {"longest_edge": 32}}, "patch_size": VISION["patch_size"]}
    (directory / "processor_config.json").write_text(json.dumps(processor))
    return model


def convert(folder: Path) -> None:
    """From `source` to `imported` and `exported`."""

    def silent(_: str) -> None:
        pass

    import_checkpoint(folder / "source", folder / "imported", MASK, report=silent, vision=True)
    export_checkpoint(folder / "imported", folder / "exported", "nld", report=silent)


def stock_answer(model: Any, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """What `generate` of `transformers` continues a prompt with, greedily, without the mask token."""
    pictures = pictures_of(prompt)
    seen = {"pixel_values": pictures.pixel_values, "image_sizes": pictures.sizes} if len(pictures) else {}
    found = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        **seen,
        max_new_tokens=new_tokens,
        do_sample=False,
        logits_processor=LogitsProcessorList([NoMaskToken(MASK)]),
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return found[0, len(prompt) :].tolist()


def vision_folder(factory: pytest.TempPathFactory) -> Path:
    """`source`, the wrapper, and what is made of it: `imported`, a checkpoint, and `exported`."""

    def make(folder: Path) -> None:
        save_vision_model(folder / "source")
        convert(folder)

    return shared_folder(factory, "vision-models", make)


def encoded(width: int, height: int, seed: int) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def require_torchvision() -> None:
    """Skips a test where it is not installed, or is one of another torch: the wheels for Linux need one for CUDA."""
    if not has_torchvision():
        pytest.skip("torchvision is not installed, or does not load beside this torch")
