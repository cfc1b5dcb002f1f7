"""The overrides with which a run uses prepared sets."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nld_train.data.manifest import Manifest
from nld_train.data.request import PrepareRequest

# Needs no quotes in Hydra's grammar, and is no number.
_PLAIN = re.compile(r"[A-Za-z0-9_.-]*/[A-Za-z0-9_./-]*")


def run_words(request: PrepareRequest, manifests: Mapping[str, Manifest]) -> list[str]:
    """Words for the command line of `nld-train`.

    Args:
        request: the request whose sets are prepared.
        manifests: of its sets, by `train` and `validation`.
    """
    words = [f"run.dir={_value(f'runs/{request.name}')}"]
    if request.chat is not None:  # fine-tuning of a model that its user names
        words += ["stages=sft", "init.checkpoint=CHECKPOINT"]
    words.append(f"data.train={_blend(request.prefixes['train'])}")
    if "validation" in request.prefixes:
        words.append(f"data.validation={_blend(request.prefixes['validation'])}")
    else:
        words += ["data.validation=[]", "validation.every=0", "evaluation.every=0"]
    words.append(f"data.tokenizer={_value(request.tokenizer_directory)}")
    if request.makes_tokenizer:  # another one belongs to a model, which has its own vocabulary
        words += _vision_words(request, manifests["train"])
        words.append(f"model.vocab_size={manifests['train'].vocabulary_size}")
    return words


def _vision_words(request: PrepareRequest, manifest: Manifest) -> list[str]:
    """The model of a set with pictures, and what of its tower the pictures decide."""
    if (pictures := manifest.pictures) is None or request.settings.pictures is None:
        return []
    processor = request.settings.pictures.processor
    keys = {
        "patch_size": processor.patch_size,
        "spatial_merge_size": processor.spatial_merge_size,
        "image_size": processor.longest_edge,
        "image_token_id": pictures.image_token_id,
        "image_break_token_id": pictures.image_break_token_id,
        "image_end_token_id": pictures.image_end_token_id,
    }
    return ["model=tiny_vision", *(f"model.vision.{key}={value}" for key, value in keys.items())]


def _blend(prefix: str) -> str:
    return f"[{{prefix: {_value(prefix)}, weight: 1}}]"


def _value(text: str) -> str:
    """A text in Hydra's grammar."""
    if _PLAIN.fullmatch(text):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"
