"""`nld-convert import`: from a Hugging Face directory to a Megatron checkpoint that any layout loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from checkpoint_convert.card_metadata import CARD, LICENSES, hub_name
from checkpoint_convert.hugging_face import HuggingFaceWeights
from checkpoint_convert.lazy_save import pieces, save
from checkpoint_convert.processor_files import PROCESSOR_FILES
from checkpoint_convert.source_config import stop_tokens
from checkpoint_convert.source_values import named_tokens
from checkpoint_convert.staging import staged
from nld_train.data.tokenizer_files import TOKENIZER, copy_tokenizer
from nld_train.data.vocabulary import DEFINITION, read_vocabulary
from nld_train.errors import UserError
from nld_train.model.adapter_files import copy_adapter, resolve_adapter
from nld_train.printable import say
from nld_train.progress import progress_bar
from nld_train.revision import SOFTWARE, software
from nld_train.training.checkpoint.manifest import write_manifest
from nld_train.training.checkpoint.paths import MODEL_FILE

SOURCE = "source"
# In it: the record of the import.
CONVERSION = "conversion.json"
_CONFIGS = ("config.json", "generation_config.json")


def import_checkpoint(
    source: Path,
    destination: Path,
    mask_token_id: int | None = None,
    report: Callable[[str], None] = say,
    vision: bool | None = None,
) -> None:
    """Converts a Hugging Face directory.

    The destination has Megatron's files, `model.json` (as in a run's checkpoint, so that `init.checkpoint` accepts it),
    `source/` (the original configuration), `tokenizer/`, `linear_spec_lora/` where the source has a drafter adapter,
    and a manifest of every file.

    Args:
        source: the directory.
        destination: must not exist; it is created complete or not at all.
        mask_token_id: for a model whose config has none; if the config has one, it must be the same.
        report: called with lines for the user.
        vision: whether with the vision tower; None: with that of an export, and without that of a Mistral3 wrapper.

    Raises:
        UserError: the source cannot be converted or the destination cannot be written; nothing is left behind.
    """
    if not source.is_dir():
        raise UserError(f"{source}: is not a directory; name a Hugging Face model directory")
    weights = HuggingFaceWeights(source, mask_token_id, vision)
    _refuse_other_mask_token(weights, mask_token_id)
    _refuse_other_vocabulary(weights)
    adapter = resolve_adapter(source, weights.model)
    total = sum(piece.bytes for piece in pieces(weights))
    with staged(destination, total) as temporary:
        with progress_bar(f"import {source.name}", total, in_bytes=True) as written:
            known = save(weights, temporary, written, source)
        (temporary / MODEL_FILE).write_text(json.dumps(asdict(weights.model), indent=1))
        (temporary / SOFTWARE).write_text(json.dumps(software(), indent=1))
        _copy_descriptions(weights, temporary)
        if adapter is not None:
            copy_adapter(adapter, temporary)
        write_manifest(temporary, known)
    for line in _notes(weights, mask_token_id):
        report(line)
    report(f"imported {source} ({weights.source.architecture}, {total / 1e9:.2f} GB) into {destination}")


def _refuse_other_mask_token(weights: HuggingFaceWeights, given: int | None) -> None:
    if given is not None and given != (named := weights.model.mask_token_id):
        raise UserError(
            f"--mask-token-id {given}: {weights.source.directory}/config.json has {named}, which the weights were "
            "trained with; omit the option"
        )


def _refuse_other_vocabulary(weights: HuggingFaceWeights) -> None:
    """Refuses a tokenizer beside the model that has more ids than it, or gives its special tokens other ids."""
    directory, model = weights.source.directory, weights.model
    if not (directory / DEFINITION).is_file():
        return
    vocabulary = read_vocabulary(str(directory))
    if vocabulary.size > model.vocab_size:
        raise UserError(
            f"{directory}: its tokenizer has {vocabulary.size} ids and its config.json a vocab_size of "
            f"{model.vocab_size}; they belong to different models"
        )
    for key, token in vocabulary.special.items():
        named = named_tokens(directory / "config.json", weights.source.text, key, model.vocab_size)
        if key == "eos_token_id":
            named += stop_tokens(weights.source, model.vocab_size)
        if named and token not in named:
            ids = ", ".join(map(str, dict.fromkeys(named)))
            raise UserError(
                f"{directory}: {key} is {ids} in config.json and {token} in its tokenizer; correct the wrong one"
            )
    mask = vocabulary.special.get("mask_token_id", model.mask_token_id)
    if mask != model.mask_token_id:
        raise UserError(
            f"{directory}: its tokenizer has the mask token {mask}, and {model.mask_token_id} would be used; give "
            f"--mask-token-id {mask}"
        )


def _copy_descriptions(weights: HuggingFaceWeights, temporary: Path) -> None:
    directory = weights.source.directory
    (temporary / SOURCE).mkdir()
    for name in (*_CONFIGS, *PROCESSOR_FILES, CARD, *LICENSES):
        if (directory / name).is_file():
            shutil.copyfile(directory / name, temporary / SOURCE / name)
    record = {"architecture": weights.source.architecture, "head_is_copy": weights.head_is_copy}
    record |= {"name": directory.resolve().name, "hub_name": hub_name(directory)}
    (temporary / SOURCE / CONVERSION).write_text(json.dumps(record, indent=1))
    copy_tokenizer(directory, temporary / TOKENIZER)


def _notes(weights: HuggingFaceWeights, given: int | None) -> list[str]:
    lines = []
    if weights.lora is not None:
        lines.append(f"the LoRA beside the weights of {weights.source.directory} was added to them")
    if aside := weights.aside:
        prefixes = ", ".join(f"{prefix}*" for prefix in weights.naming.aside)
        lines.append(f"skipped: {len(aside)} tensors of the vision model ({prefixes}); --vision keeps them")
    if scales := weights.activation_scales:
        lines.append(f"skipped: {len(scales)} activation scales of FP8 weights, which are dequantised")
    if weights.source.text.get("mask_token_id") is None and given is None:
        lines.append(f"the model has no mask token: {weights.model.mask_token_id} is used (--mask-token-id)")
    if weights.head_is_copy:
        lines.append("there is no head tensor: the head is a copy of the embedding")
    return lines
